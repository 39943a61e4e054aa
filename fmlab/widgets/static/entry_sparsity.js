export default {
  render({ model, el }) {
    const view = new SparsityView(model, el);
    return () => view.close();
  },
};
