// The query page: filters over data/queries.js, fifty queries at a time, details from data/queries-NNNN.js when they are shown.
// Names in the data are whatever users called their photos: they are inserted as text, never as markup.
"use strict";
(() => {
  const PER_PAGE = 50;
  const index = window.REPORT.queries;
  const { columns } = index;
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const fields = [...form.elements].filter((field) => field.name);
  const text = columns.text.map((words, place) => `${columns.photo[place]}\n${words}`.toLowerCase());
  let page = 0;
  let chosen = [];

  const percent = (fraction) => (fraction === null ? "–" : (100 * fraction).toFixed(1));
  const categoryOf = (id) => (id ? index.categories[id - 1] ?? `category ${id}` : "no garment");
  const outcomeOf = (place) => {
    const first = columns.first[place];
    return first === "missed" ? "missed" : first === 1 ? "right" : first ? "later" : "wrong";
  };

  // An element: attributes, then children; texts become text nodes.
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  };

  // ---- details, loaded as scripts: a page opened from a folder may not fetch -------------------------------------

  const loading = new Map();
  const load = (number) => {
    const name = `queries-${String(number).padStart(4, "0")}`;
    if (!loading.has(name)) {
      loading.set(name, new Promise((resolve, reject) => {
        const script = make("script", { src: `data/${name}.js` });
        script.onload = () => resolve(window.REPORT[name]);
        script.onerror = () => { loading.delete(name); reject(new Error(`data/${name}.js does not load`)); };
        document.head.append(script);
      }));
    }
    return loading.get(name);
  };
  const detailsOf = async (place) => (await load(Math.floor(place / index.chunk)))[place % index.chunk];

  // ---- one query ------------------------------------------------------------------------------------------------

  const picture = (shot, alt) => {
    if (shot === 0) return make("span", { class: "nopicture" }, "no picture: this query was not chosen");
    if (shot === 1) return make("span", { class: "nopicture" }, "no picture: the photo cannot be decoded");
    const [src, width, height] = shot;
    return make("a", { class: "opens", href: src }, make("img", { src, width, height, alt, loading: "lazy", decoding: "async" }));
  };

  const verdict = (place, details) => {
    if (!index.truth) return null;
    const first = columns.first[place];
    if (first === "missed") return make("span", { class: "verdict no" }, `✗ missed: no ${index.truth === "photo" ? "garment was detected" : "detection matches the garment"}`);
    if (!first) return make("span", { class: "verdict no" }, `✗ none of ${details.ranked} results is right`);
    return make("span", { class: "verdict ok" }, `✓ first right result at rank ${first}${first > index.top ? ", below those shown" : ""}`);
  };

  const levels = (place) => {
    const words = [...columns.levels[place]].map((level, n) => (level > "0" ? `${index.attributes[n][0]} ${index.attributes[n][1][level - 1]}` : ""));
    const known = words.filter(Boolean);
    return known.length ? make("span", { class: "file levels" }, known.join(" · ")) : null;
  };

  const legendEntry = ([label, category, colour, score, votes, query, missed, judged]) => {
    const words = [categoryOf(category)];
    if (missed) words.push(", true box, not detected");
    else {
      if (score !== null) words.push(` ${percent(score)}`);
      if (votes) words.push(` · ${votes} ${votes === 1 ? "vote" : "votes"}`);
      if (query) words.push(" · query");
    }
    const entry = make("span", query ? { class: "is" } : {}, words.join(""));
    const several = judged.length > 1 || judged.some(([, value]) => value !== score);
    const scores = several ? judged.map(([id, value]) => `${categoryOf(id)} ${percent(value)}`).join(", ") : "";
    return make("li", {}, make("span", { class: "key", style: `background: ${colour}` }, label), make("span", {}, entry, scores ? `; judged as ${scores}` : ""));
  };

  const attribute = ([name, text]) => make("span", { class: "id", title: text }, make("bdi", {}, `${name} `), make("bdi", { class: "is" }, text));

  // A name people know, and the photo's id only where there is none.
  const nameOf = (name, photo) => name || `photo ${photo}`;

  const shop = ([photo, similarity, right, name, shot, attributes], n) => {
    const said = right ? ", right" : index.truth ? ", wrong" : "";
    const head = make("span", {}, `${n + 1}. `, right ? make("span", { class: "tick" }, "✓ right") : null);
    const caption = make("figcaption", {}, make("span", { class: "line" }, head, make("span", {}, percent(similarity))));
    caption.append(make("span", { class: "id name" }, make("bdi", { title: nameOf(name, photo) }, nameOf(name, photo))));
    caption.append(...attributes.filter(([, text]) => text !== name).map(attribute));
    const frame = make("div", { class: "frame" }, picture(shot, `rank ${n + 1}, ${nameOf(name, photo)}, similarity ${percent(similarity)}${said}`));
    return make("li", right ? { class: "right" } : {}, make("figure", {}, frame, caption));
  };

  // What would have been right, and why it is not there.
  const answer = ({ answer: right, reason }) => {
    if (!right) return reason ? make("p", { class: "answer" }, reason) : null;
    const name = nameOf(right.name, right.photo);
    const known = [right.place, right.similarity === null ? "" : `similarity ${percent(right.similarity)}`].filter(Boolean).join(", ");
    const alt = `would have been right: ${name}${known ? `, ${known}` : ""}`;
    const words = make("p", {}, make("b", {}, "Would have been right: "), make("bdi", {}, name), known ? `, ${known}.` : ".", reason ? ` ${reason}` : "");
    return make("div", { class: "answer" }, make("div", { class: "frame" }, picture(right.picture, alt)), words);
  };

  const article = (place, details) => {
    const category = categoryOf(columns.category[place]);
    const name = nameOf(details.file || details.product, columns.photo[place]);
    const header = make("header", {}, make("h3", {}, make("bdi", {}, name), ` · ${category}`), verdict(place, details), levels(place));
    if (details.attributes.length) header.append(make("span", { class: "file" }, make("bdi", {}, details.attributes.map(([name, text]) => `${name} ${text}`).join(" · "))));
    const boxes = `${details.marks.length} ${details.marks.length === 1 ? "box" : "boxes"}`;
    const alt = `consumer photo ${name} with ${boxes}; the query is the ${category}`;
    const photo = make("figure", { class: "photo" }, picture(details.picture, alt), make("figcaption", {}, make("ul", { class: "legend" }, ...details.marks.map(legendEntry))));
    const missed = columns.first[place] === "missed";
    const unseen = index.truth === "photo" ? "No results: the photo has no boxes." : "No results. The numbered boxes were found; the dashed one is the garment's true box.";
    const nothing = missed ? unseen : "No results.";
    const found = details.results.length ? make("ol", { class: "shops" }, ...details.results.map(shop)) : make("p", { class: "soft" }, nothing);
    return make("article", { class: "query", tabindex: "-1", "aria-label": `${name}, ${category}` }, header, photo, make("div", {}, answer(details) ?? "", found));
  };

  // ---- filters --------------------------------------------------------------------------------------------------

  const option = (value, words) => make("option", { value }, words);
  const fillFilters = () => {
    const counts = new Map();
    for (const id of columns.category) counts.set(id, (counts.get(id) ?? 0) + 1);
    form.elements.category.append(...[...counts].sort(([a], [b]) => a - b).map(([id, n]) => option(id, `${categoryOf(id)} (${n.toLocaleString("en")})`)));
    if (!form.elements.attribute) return;
    index.attributes.forEach(([name, words], n) => {
      const group = make("optgroup", { label: name }, ...words.map((word, level) => option(`${n}:${level + 1}`, `${name} ${word}`)));
      form.elements.attribute.append(group);
    });
  };

  const valueOf = (name) => {
    const field = form.elements[name];
    return !field ? "" : field.type === "checkbox" ? (field.checked ? "1" : "") : field.value.trim();
  };

  const fits = () => {
    const [outcome, category, attribute, words] = ["outcome", "category", "attribute", "text"].map(valueOf);
    const [which, level] = attribute.split(":");
    const least = Number(valueOf("score")) / 100;
    const sought = words.toLowerCase();
    const drawn = valueOf("drawn");
    return (place) =>
      (!outcome || outcomeOf(place) === outcome) &&
      (!category || columns.category[place] === Number(category)) &&
      (!attribute || columns.levels[place][which] === level) &&
      (!least || (columns.score[place] !== null && columns.score[place] >= least)) &&
      (!drawn || columns.drawn[place]) &&
      (!sought || text[place].includes(sought));
  };

  const ORDERS = {
    photo: (a, b) => columns.photo[a].length - columns.photo[b].length || (columns.photo[a] < columns.photo[b] ? -1 : columns.photo[a] > columns.photo[b] ? 1 : a - b),
    score: (a, b) => (columns.score[b] ?? -1) - (columns.score[a] ?? -1) || a - b,
    rank: (a, b) => rankOf(a) - rankOf(b) || a - b,
  };
  const rankOf = (place) => (columns.first[place] === "missed" ? index.length + 2 : columns.first[place] || index.length + 1);

  const choose = () => {
    chosen = columns.photo.map((_, place) => place).filter(fits());
    const order = ORDERS[valueOf("order")];
    if (order) chosen.sort(order);
  };

  // ---- the page -------------------------------------------------------------------------------------------------

  let turn = 0;
  const show = async () => {
    const mine = ++turn;
    const pages = Math.max(1, Math.ceil(chosen.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const places = chosen.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
    let articles;
    try {
      articles = (await Promise.all(places.map(detailsOf))).map((details, n) => article(places[n], details));
    } catch (error) {
      articles = [make("p", { class: "empty" }, `${error.message}; is the whole report folder there?`)];
    }
    if (mine !== turn) return; // a later choice is under way
    if (!places.length) articles.push(make("p", { class: "empty" }, "No query fits these filters."));
    list.replaceChildren(...articles);
    const range = places.length ? `${page * PER_PAGE + 1}–${page * PER_PAGE + places.length} of ` : "";
    document.getElementById("count").textContent = `${range}${chosen.length.toLocaleString("en")} queries`;
    for (const button of document.querySelectorAll("[data-step]")) button.disabled = button.dataset.step < 0 ? page === 0 : page >= pages - 1;
    list.dataset.shown = String(mine);
  };

  // What is chosen stands in the address, so that it can be sent to somebody.
  const write = () => {
    const words = new URLSearchParams(fields.map((field) => [field.name, valueOf(field.name)]).filter(([, value]) => value));
    if (page) words.set("page", String(page + 1));
    history.replaceState(null, "", words.size ? `#${words}` : location.pathname.split("/").at(-1));
  };
  const read = () => {
    const words = new URLSearchParams(location.hash.slice(1));
    for (const field of fields) {
      if (field.type === "checkbox") field.checked = words.has(field.name);
      else field.value = words.get(field.name) ?? "";
      if (field.tagName === "SELECT" && field.selectedIndex < 0) field.selectedIndex = 0; // a value that this run does not have
    }
    page = Number(words.get("page") ?? 1) - 1 || 0;
  };

  const filter = () => { page = 0; choose(); write(); show(); };
  const turnTo = async (step) => {
    const before = page;
    page += step;
    await show();
    if (page === before) return;
    write();
    document.getElementById("filters").scrollIntoView({ block: "start" });
  };

  // The query under the eye: the focused one, else the first that is not above the window.
  const step = (by) => {
    const all = [...list.querySelectorAll(".query")];
    const held = all.indexOf(document.activeElement?.closest?.(".query"));
    const near = all.findIndex((one) => one.getBoundingClientRect().bottom > 60);
    const next = all[held < 0 ? Math.max(near, 0) : held + by];
    next?.focus({ preventScroll: true });
    next?.scrollIntoView({ block: "start" });
  };

  const KEYS = {
    n: () => step(1), j: () => step(1), p: () => step(-1), k: () => step(-1),
    ArrowRight: () => turnTo(1), ArrowLeft: () => turnTo(-1), "/": () => form.elements.text.focus(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const typing = event.target.closest("input, select, textarea, .scroll");
    if (event.key === "Escape" && typing) return typing.blur();
    if (typing || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  let waiting;
  form.addEventListener("input", (event) => { clearTimeout(waiting); waiting = setTimeout(filter, event.target.type === "search" ? 150 : 0); });
  form.addEventListener("submit", (event) => event.preventDefault());
  document.querySelectorAll("[data-step]").forEach((button) => button.addEventListener("click", () => turnTo(Number(button.dataset.step))));
  window.addEventListener("hashchange", () => { read(); choose(); show(); });
  fillFilters();
  read();
  choose();
  show();
})();
