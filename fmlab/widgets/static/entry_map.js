// The linked view alone, bound to a RetentionMap.
export default {
  render({ model, el }) {
    el.classList.add("fmlab");
    keepKeys(el);
    const view = new RetentionView(el, (change) => {
      if ("step" in change) model.send({ kind: "step", step: change.step });
    });
    const show = () => {
      view.setTokens(model.get("tokens"));
      view.setStep(model.get("go").step, false);
      view.setRuns(model.get("frame").runs.map((header) => new Run(header, model.get("data"))));
    };
    const step = () => view.setStep(model.get("go").step, false);
    model.on("change:frame", show);
    model.on("change:go", step);
    show();
    return () => {
      view.stop();
      model.off("change:frame", show);
      model.off("change:go", step);
    };
  },
};
