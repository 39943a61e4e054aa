export default {
  render({ model, el }) {
    const turns = new TurnsView(model, el);
    return () => turns.close();
  },
};
