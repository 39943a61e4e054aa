// A small plain table of figures; shares carry a thin bar.
function figureTable(figures) {
  const cell = (value, at) => {
    const td = h("td", { "data-side": figures.columns[at]?.side }, h("span", {}, value.text));
    if (value.share !== null && value.share !== undefined) {
      const bar = h("span", { class: "fm-bar", "aria-hidden": "true" });
      bar.style.setProperty("--share", value.share);
      td.prepend(bar);
    }
    return td;
  };
  const head = figures.columns.map((column) => h("th", { scope: "col", title: column.label },
    column.side ? h("span", { class: `fm-badge fm-badge-${column.side}` }, column.side.toUpperCase()) : null, column.side ? "" : column.label));
  return h("table", {}, h("caption", {}, figures.caption),
    h("thead", {}, h("tr", {}, h("td", {}), ...head)),
    h("tbody", {}, ...figures.rows.map((row) => h("tr", { title: row.help }, h("th", { scope: "row" }, row.name), ...row.cells.map(cell)))));
}
