/* Theme, sortable tables, filters. The pages can be read without it. */
"use strict";
(() => {
  const page = document.documentElement, button = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  const remembered = () => { try { return localStorage.getItem("autopet-theme"); } catch { return null; } };
  function setTheme(name) {
    if (name === "auto") delete page.dataset.theme; else page.dataset.theme = name;
    if (button) button.lastElementChild.textContent = name;
  }
  setTheme(themes.includes(remembered()) ? remembered() : "auto");
  if (button) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const next = themes[(themes.indexOf(page.dataset.theme || "auto") + 1) % themes.length];
      setTheme(next);
      try { localStorage.setItem("autopet-theme", next); } catch { /* private windows keep nothing */ }
    });
  }

  function valueOf(row, index) {
    const cell = row.cells[index], text = cell.dataset.value ?? cell.textContent.trim();
    if (text === "") return null;
    const value = Number(text);
    return Number.isNaN(value) ? text.toLowerCase() : value;
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }
  function sort(table, header) {
    const index = header.cellIndex, body = table.tBodies[0];
    const now = header.getAttribute("aria-sort");
    const descending = now ? now === "ascending" : header.dataset.sort === "down";
    const rows = [...body.rows].map((row) => [valueOf(row, index), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // what is undefined stays last
      return descending ? compare(b, a) : compare(a, b);
    });
    for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...rows.map(([, row]) => row));
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const header of table.tHead.rows[0].cells) {
      if (!("sort" in header.dataset)) continue;
      const control = document.createElement("button");
      control.className = "sort";
      control.type = "button";
      control.append(...header.childNodes);
      control.addEventListener("click", () => sort(table, header));
      header.append(control);
    }
  }
  for (const input of document.querySelectorAll("input.filter")) {
    input.hidden = false;
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const row of document.querySelectorAll(`#${input.dataset.rows} tbody tr`)) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
      }
    });
  }
})();
