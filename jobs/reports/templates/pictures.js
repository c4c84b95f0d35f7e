// A picture opens large in a dialog: a link that this script intercepts; without it the link opens the file. Escape closes.
"use strict";
(() => {
  const dialog = document.createElement("dialog");
  const image = document.createElement("img");
  const words = document.createElement("p");
  const close = document.createElement("button");
  dialog.className = "large";
  dialog.setAttribute("aria-label", "Picture");
  close.type = "button";
  close.textContent = "Close";
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // beside the picture
  dialog.addEventListener("close", () => dialog.remove());

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.opens");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const small = link.querySelector("img");
    image.src = small.src;
    image.width = small.getAttribute("width");
    image.height = small.getAttribute("height");
    image.alt = "";
    words.textContent = small.alt;
    dialog.replaceChildren(close, image, words);
    document.body.append(dialog);
    dialog.showModal();
  });
})();
