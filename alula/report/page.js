"use strict";

// Plots: colours are names of CSS variables, so that light and dark share one figure.
function coloured(value) {
  if (typeof value === "string") {
    const name = /^var\((--[a-z]+)\)$/.exec(value);
    return name ? getComputedStyle(document.documentElement).getPropertyValue(name[1]).trim() : value;
  }
  if (Array.isArray(value)) return value.map(coloured);
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item)]));
  }
  return value;
}

function draw() {
  for (const source of document.querySelectorAll("script[data-plot]")) {
    const figure = coloured(JSON.parse(source.textContent));
    Plotly.react(source.dataset.plot, figure.data, figure.layout, { responsive: true, displayModeBar: false });
  }
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// Tables: a heading's button sorts by its column; numbers by data-order, empty ones last.
function sort(heading) {
  const body = heading.closest("table").tBodies[0];
  const number = heading.dataset.sort === "number";
  const up = heading.getAttribute("aria-sort") !== (number ? "descending" : "ascending") ? !number : number;
  const key = (row) => {
    const cell = row.cells[heading.cellIndex];
    return number ? (cell.dataset.order === undefined ? null : Number(cell.dataset.order)) : cell.textContent;
  };
  const compare = (left, right) => {
    if (left === null || right === null) return (left === null) - (right === null);
    const order = number ? left - right : left.localeCompare(right, undefined, { numeric: true });
    return up ? order : -order;
  };
  const rows = [...body.rows].map((row) => [key(row), row]).sort((a, b) => compare(a[0], b[0]));
  body.append(...rows.map(([, row]) => row));
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
}

for (const button of document.querySelectorAll(".sortable th button")) {
  button.addEventListener("click", () => sort(button.parentElement));
}
