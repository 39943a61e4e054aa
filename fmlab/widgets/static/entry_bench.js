export default {
  render({ model, el }) {
    const bench = new BenchView(model, el);
    return () => bench.close();
  },
};
