// Filters the atlas. Without it the page is the full table; the address keeps the choice.
(() => {
  const form = document.getElementById("gs-filter");
  if (!form) return;
  const rows = [...document.querySelectorAll("#gs-papers tbody tr")];
  const count = document.getElementById("gs-count");
  const fields = [...form.elements].filter((field) => field.name);
  const inPart = new Set(["q", "score", "budget", "pattern", "schedule", "kernel"]);
  const plain = (text) => text.normalize("NFKC").toLowerCase();

  const fits = (row) =>
    fields.every(({ name, value }) => {
      const wanted = plain(value);
      if (!inPart.has(name)) return !wanted || row.dataset[name].split(" ").includes(wanted);
      const words = name === "q" ? wanted.split(/\s+/) : [wanted];
      return words.every((word) => row.dataset[name].includes(word));
    });

  const show = () => {
    const shown = rows.filter((row) => !(row.hidden = !fits(row)));
    const all = shown.length === rows.length;
    count.textContent = all
      ? `${rows.length} papers`
      : `${shown.length} of ${rows.length} papers${shown.length ? "" : ": take a word away, or clear the filter"}`;
  };

  const keep = () => {
    const chosen = new URLSearchParams(fields.filter((f) => f.value).map((f) => [f.name, f.value]));
    const address = location.href.split("#")[0] + (chosen.size ? `#${chosen}` : "");
    history.replaceState(history.state, "", address);
  };

  const restore = () => {
    const chosen = new URLSearchParams(location.hash.slice(1));
    for (const field of fields) {
      const value = chosen.get(field.name) ?? "";
      const known = field.tagName === "INPUT" || [...field.options].some((o) => o.value === value);
      field.value = known ? value : "";
    }
    show();
  };

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => (show(), keep()));
  form.addEventListener("reset", () => setTimeout(() => (show(), keep())));
  addEventListener("hashchange", restore);
  form.hidden = false;
  restore();
})();
