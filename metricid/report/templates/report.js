"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const value = (cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  };

  for (const controls of all(".controls")) controls.hidden = false;

  for (const table of all("table[data-sortable]")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      if ("unsorted" in head.dataset) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const rows = all("tbody tr", table);
        const start = head.classList.contains("number") ? "descending" : "ascending";
        const other = start === "ascending" ? "descending" : "ascending";
        const way = head.getAttribute("aria-sort") === start ? other : start;
        for (const each of heads) if (each.hasAttribute("aria-sort")) each.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", way);
        const sign = way === "ascending" ? 1 : -1;
        rows.sort((a, b) => sign * compare(value(a.cells[column]), value(b.cells[column])));
        table.tBodies[0].append(...rows);
      });
    });
  }

  const filter = (id) => {
    const box = document.querySelector(`input[data-filter="${id}"]`);
    const group = document.querySelector(`select[data-group="${id}"]`);
    const wanted = box.value.trim().toLowerCase();
    const items = all("[data-item]", document.getElementById(id));
    let shown = 0;
    for (const item of items) {
      const fits = item.dataset.key.toLowerCase().includes(wanted) && (!group || !group.value || item.dataset.group === group.value);
      item.hidden = !fits;
      shown += fits;
    }
    document.querySelector(`output[data-count="${id}"]`).textContent = `${shown} of ${items.length} shown`;
  };
  for (const box of all("input[data-filter]")) {
    box.addEventListener("input", () => filter(box.dataset.filter));
    filter(box.dataset.filter);
  }
  for (const group of all("select[data-group]")) group.addEventListener("change", () => filter(group.dataset.group));
  for (const order of all("select[data-order]")) {
    order.addEventListener("change", () => {
      const list = document.getElementById(order.dataset.order);
      const down = order.value.startsWith("-");
      const name = order.value.replace("-", "");
      const key = (item) => (name === "key" ? item.dataset.key : Number(item.dataset[name]));
      list.append(...all("[data-item]", list).sort((a, b) => (down ? -1 : 1) * compare(key(a), key(b))));
    });
  }

  for (const box of all("input[data-highlight]")) {
    const figure = document.getElementById(box.dataset.highlight);
    const points = all(".chart .point", figure);
    const count = document.querySelector(`output[data-count="${box.dataset.highlight}"]`);
    box.addEventListener("input", () => {
      const wanted = box.value.trim().toLowerCase();
      let found = 0;
      for (const point of points) {
        const fits = wanted !== "" && point.textContent.toLowerCase().includes(wanted);
        point.classList.toggle("on", fits);
        found += fits;
      }
      figure.classList.toggle("lit", found > 0);
      count.textContent = wanted === "" ? "" : `${found} of ${points.length} images`;
    });
  }
})();
