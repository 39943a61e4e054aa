// The charts of the report: drawn from the JSON beside them, in the colours of the reader's theme.
const dark = matchMedia("(prefers-color-scheme: dark)");
const ink = () => getComputedStyle(document.body).color;
const config = JSON.parse(document.querySelector("script[data-chart-config]").textContent);

for (const place of document.querySelectorAll(".chart")) {
  const figure = JSON.parse(place.querySelector("script").textContent);
  const layout = { ...figure.layout, font: { ...figure.layout.font, color: ink() }, autosize: true };
  Plotly.newPlot(place.querySelector("div"), figure.data, layout, config).then(() => { place.dataset.drawn = "yes"; });
}
dark.addEventListener("change", () => {
  for (const drawn of document.querySelectorAll(".chart > div")) Plotly.relayout(drawn, { "font.color": ink() });
});
