const button = document.getElementById("toggle"), cells = document.querySelectorAll("details.code");
const say = () => { button.textContent = [...cells].every(cell => cell.open) ? "fold all code" : "open all code"; };
button.addEventListener("click", () => {
  const open = ![...cells].every(cell => cell.open);
  for (const cell of cells) cell.open = open;
  say();
});
for (const cell of cells) cell.addEventListener("toggle", say);
button.hidden = !cells.length;
say();
