const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll(".grid button")) {
  button.addEventListener("click", () => {
    const image = button.querySelector("img");
    const large = dialog.querySelector("img");
    large.src = image.src;
    large.alt = image.alt;
    large.className = image.className;
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
