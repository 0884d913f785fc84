// A picture with its words. The new one is shown once it is decoded, so that nothing flickers while a slider moves.
export default {
  render({ model, el }) {
    const image = document.createElement("img");
    image.className = "widget-image pipelab-picture";
    image.style.maxWidth = "100%";
    el.append(image);
    let newest = 0;

    async function show() {
      const mine = ++newest;
      const url = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
      const next = new Image();
      next.src = url;
      await next.decode().catch(() => {});
      if (mine !== newest) {
        URL.revokeObjectURL(url); // a later one overtook this one
        return;
      }
      const old = image.src;
      image.alt = model.get("alt");
      image.src = url;
      if (old) URL.revokeObjectURL(old);
    }

    model.on("change:png", show);
    show();
    return () => {
      newest = -1;
      model.off("change:png", show);
      if (image.src) URL.revokeObjectURL(image.src);
    };
  },
};
