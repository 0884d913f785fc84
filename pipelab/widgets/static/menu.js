import { keepKeys } from "./keys.js";

// A menu with its name. A native element keeps its keys only if JupyterLab does not get them first.
export default {
  render({ model, el }) {
    el.classList.add("pipelab", "pl-choices");
    el.addEventListener("keydown", keepKeys);
    const label = document.createElement("label");
    label.className = "pl-choice";
    const select = document.createElement("select");
    select.className = "pl-select";
    select.setAttribute("aria-label", model.get("label")); // the label alone: that around it has all options in it
    label.append(model.get("label"), select);
    for (const [text, value] of model.get("options")) select.append(new Option(text, value));
    const show = () => (select.value = model.get("value"));
    select.addEventListener("change", () => {
      model.set("value", select.value);
      model.save_changes();
    });
    model.on("change:value", show);
    el.append(label);
    show();
    return () => model.off("change:value", show);
  },
};
