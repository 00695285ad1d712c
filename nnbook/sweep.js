"use strict";
const table = document.getElementById("points"), body = table.tBodies[0], rows = [...body.rows];
const heads = [...table.tHead.rows[0].cells], names = heads.map((head) => head.dataset.name);
const held = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
const asNumber = (text) => (text.trim() === "" || isNaN(text) ? null : Number(text));

function sort(column) {
  const down = heads[column].getAttribute("aria-sort") === "ascending", sign = down ? -1 : 1;
  heads.forEach((head, place) =>
    place === column ? head.setAttribute("aria-sort", down ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
  const keys = new Map(rows.map((row) => [row, held(row, column)]));
  rows.sort((one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)], [x, y] = [asNumber(a), asNumber(b)];
    if (a === "" || b === "") return (a === "") - (b === "");  // what wasn't measured comes last, whichever the way
    return sign * (x !== null && y !== null ? x - y : a.localeCompare(b));
  });
  body.append(...rows);
}

function matches(row, word) {
  const [, name, sign, wanted] = word.match(/^([\w ]+?)(<=|>=|=|<|>)(.+)$/) ?? [];
  const column = names.indexOf(name);
  if (column < 0) return row.textContent.toLowerCase().includes(word.toLowerCase());
  const value = held(row, column), [x, y] = [asNumber(value), asNumber(wanted)];
  if (x === null || y === null) return sign === "=" && value.toLowerCase() === wanted.toLowerCase();
  return { "<": x < y, ">": x > y, "<=": x <= y, ">=": x >= y, "=": x === y }[sign];
}

function filter() {
  const words = document.getElementById("filter").value.split(/\s+/).filter(Boolean);
  rows.forEach((row) => { row.hidden = !words.every((word) => matches(row, word)); });
  document.getElementById("count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
}

heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(column)));
document.getElementById("filter").addEventListener("input", filter);
filter();
