// A widget is displayed as two outputs: a picture with its words, which any reader of the saved notebook shows, and
// the live widget. Where the live one is at work the picture would only say the same thing twice.

const SHOWN_AREA = ".jp-OutputArea-child";
const SHOWN_FREED = "pipelab-picture-freed";

function shownPicture(el, tails) {
  // The nearest output above whose picture ends as one of ours does. Ends, since the start of every PNG is alike. What
  // is hidden already has a view of its own: two equal widgets have two equal pictures.
  let child = el.closest(SHOWN_AREA);
  while ((child = child?.previousElementSibling ?? null)) {
    if (child.style.display === "none") continue;
    for (const image of child.querySelectorAll("img")) {
      const source = image.src.replace(/\s|%0A/g, ""); // notebooks break lines in base64
      if (tails.some((tail) => source.endsWith(tail))) return child;
    }
  }
  return null;
}

// Hides the picture above `el` while this view lives. Returns what brings it back: call it when the view ends.
export function hideStatic(el, model) {
  let hidden = null;
  let ended = false;

  function hide() {
    const tails = (model.get("_static_tail") || "").split(" ").filter(Boolean);
    if (ended || hidden || !el.isConnected || !tails.length) return;
    hidden = shownPicture(el, tails);
    if (hidden) hidden.style.display = "none";
  }

  // A view is rendered before it is put into the page, and JupyterLab may put it there later than it says.
  const observer = new ResizeObserver(hide);
  observer.observe(el);
  model.on("change:_static_tail", hide);
  document.addEventListener(SHOWN_FREED, hide); // this view may be drawn before the one that it replaces has gone
  hide();
  return () => {
    ended = true;
    observer.disconnect();
    model.off("change:_static_tail", hide);
    document.removeEventListener(SHOWN_FREED, hide);
    if (hidden) {
      hidden.style.display = "";
      document.dispatchEvent(new Event(SHOWN_FREED));
    }
    hidden = null;
  };
}
