// A canvas at the page's resolution, and the theme's colours as a canvas takes them.

export const FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif";

const THEME_COLOURS = {
  ink: "--pl-ink", soft: "--pl-soft-ink", paper: "--pl-paper", line: "--pl-line", warn: "--pl-warn",
  idle: "--pl-idle", hatch: "--pl-hatch",
};

// The theme's colours as a canvas takes them. A variable may hold another one, so each is resolved by an element.
export function readTheme(root) {
  const probe = document.createElement("span");
  root.append(probe);
  const theme = {};
  for (const [name, variable] of Object.entries(THEME_COLOURS)) {
    probe.style.color = `var(${variable})`;
    theme[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  theme.isDark = brightness(theme.paper) < 0.5;
  return theme;
}

function brightness(colour) {
  const [r, g, b] = (colour.match(/[\d.]+/g) || [255, 255, 255]).map(Number);
  return (0.299 * r + 0.587 * g + 0.114 * b) / 255;
}

export function rgbOf(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

// A colour as it is when most of it is paper: opaque, so that what lies beneath does not shine through.
export function fainter(colour, paper, share) {
  const under = (paper.match(/[\d.]+/g) || [255, 255, 255]).map(Number);
  const mixed = rgbOf(colour).map((level, n) => Math.round(share * level + (1 - share) * under[n]));
  return `#${mixed.map((level) => level.toString(16).padStart(2, "0")).join("")}`;
}

// One canvas, its resolution, and what is kept from one painting to the next.
export class Sheet {
  constructor(canvas) {
    this.canvas = canvas;
    this.ctx = canvas.getContext("2d");
    this.ratio = 1;
    this.strip = null;
    this.hatch = null;
  }

  // Fit the canvas to the page's pixels, and start afresh.
  clear(width, height) {
    const ratio = window.devicePixelRatio || 1;
    const wide = Math.max(1, Math.round(width * ratio));
    const high = Math.max(1, Math.round(height * ratio));
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      this.canvas.width = wide;
      this.canvas.height = high;
      this.canvas.style.height = `${height}px`;
    }
    if (ratio !== this.ratio) this.hatch = null;
    this.ratio = ratio;
    this.ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.ctx.globalAlpha = 1;
    this.ctx.clearRect(0, 0, width, height);
  }

  // Strokes over idle time; made once for a colour.
  hatching(colour) {
    if (this.hatch && this.hatch.colour === colour) return this.hatch.pattern;
    const size = Math.round(7 * this.ratio);
    const tile = document.createElement("canvas");
    tile.width = tile.height = size;
    const ctx = tile.getContext("2d");
    ctx.strokeStyle = colour;
    ctx.lineWidth = this.ratio;
    for (const shift of [-size, 0, size]) {
      ctx.beginPath();
      ctx.moveTo(shift - 1, size + 1);
      ctx.lineTo(shift + size + 1, -1);
      ctx.stroke();
    }
    const pattern = this.ctx.createPattern(tile, "repeat");
    pattern.setTransform(new DOMMatrix().scale(1 / this.ratio));
    this.hatch = { colour, pattern };
    return pattern;
  }

  // Pixels to be stretched over rows: one line of `width` device pixels for each row.
  pixels(width, rows) {
    if (!this.strip || this.strip.canvas.width !== width || this.strip.canvas.height !== rows) {
      const canvas = document.createElement("canvas");
      canvas.width = width;
      canvas.height = rows;
      const ctx = canvas.getContext("2d");
      this.strip = { canvas, ctx, image: ctx.createImageData(width, rows) };
    }
    this.strip.image.data.fill(0);
    return this.strip;
  }
}
