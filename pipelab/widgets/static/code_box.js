import { keepKeys } from "./keys.js";

// Lines of code with a button that copies them. They are text, never markup.
export default {
  render({ model, el }) {
    el.classList.add("pipelab", "pl-code-box");
    el.addEventListener("keydown", (event) => {
      // The button needs but these two; after it was pressed all others are JupyterLab's, as on any button.
      if (event.target !== copy || event.key === "Enter" || event.key === " ") keepKeys(event);
    });
    const lines = document.createElement("pre");
    lines.tabIndex = 0; // wide lines scroll, also by keys
    lines.setAttribute("role", "region");
    lines.setAttribute("aria-label", "Code that makes this plan and runs it");
    const copy = document.createElement("button");
    copy.type = "button";
    copy.className = "pl-button";
    copy.textContent = "Copy";
    copy.title = "Copy the lines";
    const said = document.createElement("span");
    said.setAttribute("role", "status");

    function show() {
      lines.textContent = model.get("code");
      said.textContent = "";
    }

    async function take() {
      try {
        await navigator.clipboard.writeText(model.get("code"));
        said.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(lines); // no clipboard on an unsafe connection: Ctrl+C does the rest
        said.textContent = "selected: press Ctrl+C";
      }
    }

    // A mouse leaves the focus where it was.
    copy.addEventListener("mousedown", (event) => event.preventDefault());
    copy.addEventListener("click", take);
    model.on("change:code", show);
    el.append(copy, said, lines);
    show();
    return () => model.off("change:code", show);
  },
};
