// Keys pressed in a control are the control's. JupyterLab would take an arrow for a command to the notebook and keep the
// slider from moving. What is pressed with Ctrl, and Shift+Enter, goes on to JupyterLab.
export function keepKeys(event) {
  const isCommand = event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && event.key === "Enter");
  if (!isCommand) event.stopPropagation();
}
