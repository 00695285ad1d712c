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

const labels = heads.map((head, column) => [head.textContent.trim(), names[column]]);
labels.sort(([one], [other]) => other.length - one.length);  // "test accuracy layer 1" before "test accuracy"

function conditions(text) {  // words, with columns by their names where they were called as the headings call them
  for (const [label, name] of labels) text = text.replace(new RegExp(`${label}(?=\\s*[<>=])`, "gi"), name);
  return text.replace(/\s*(<=|>=|=|<|>)\s*/g, "$1").replace(/\s+%/g, "%").split(/\s+/).filter(Boolean).map((word) => {
    const [, name, sign, wanted] = word.match(/^([^<>=]+)(<=|>=|=|<|>)(.+)$/) ?? [];
    return { word: word.toLowerCase(), name, sign, wanted: wanted?.toLowerCase().split(","), column: names.indexOf(name) };
  });
}

function compared(value, sign, wanted) {
  const share = wanted.endsWith("%") ? 100 : 1, [x, y] = [asNumber(value), asNumber(wanted.replace(/%$/, ""))];
  if (x === null || y === null) return sign === "=" && value.toLowerCase() === wanted;
  const [a, b] = [x, y / share];
  return { "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b, "=": a === b }[sign];
}

function matches(row, { word, sign, wanted, column }) {
  if (column < 0) return row.textContent.toLowerCase().includes(word);
  return wanted.some((each) => compared(held(row, column), sign, each));
}

function filter() {
  const asked = conditions(document.getElementById("filter").value);
  rows.forEach((row) => { row.hidden = !asked.every((condition) => matches(row, condition)); });
  const strange = asked.find(({ name, column }) => name && column < 0), shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = `${shown} of ${rows.length}` + (strange ? `, no column ${strange.name}` : "");
}

heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(column)));
document.getElementById("filter").addEventListener("input", filter);
filter();
