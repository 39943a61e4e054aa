// The hit curves, bound to HitCurves.
const CHOICES = ["block_tokens", "capacity_tokens", "ratio"];

export default {
  render({ model, el }) {
    el.classList.add("fmlab");
    keepKeys(el);
    const view = new HitView(el, model.get("curves"), (change) => {
      for (const [name, value] of Object.entries(change)) model.set(name, value);
      model.save_changes();
    });
    const follow = Object.fromEntries(CHOICES.map((name) => [name, () => view.show({ [name]: model.get(name) })]));
    for (const name of CHOICES) model.on(`change:${name}`, follow[name]);
    view.show(Object.fromEntries(CHOICES.map((name) => [name, model.get(name)])));
    return () => {
      for (const name of CHOICES) model.off(`change:${name}`, follow[name]);
    };
  },
};
