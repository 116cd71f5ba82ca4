"use strict";

const PERIOD_MS = 1000, POINTS = 120, SHOWN_CHARACTERS = 20000;
const byId = (id) => document.getElementById(id);
const history = new Map(), configs = new Map();
let before = null, token = "", sample = null;

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.status === 401) byId("token-form").hidden = false;
  return answer;
}

function series(text) { // Prometheus' text -> name -> [{labels, value}]
  const out = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, key, value] of (found[2] || "").matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g))
      labels[key] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    if (!out.has(found[1])) out.set(found[1], []);
    out.get(found[1]).push({ labels, value: Number(found[3]) });
  }
  return out;
}

const sum = (all, name, model) =>
  (all.get(name) || []).filter((s) => s.labels.model === model.name && s.labels.version === model.version)
    .reduce((total, s) => total + s.value, 0);

function buckets(all, model) {
  const out = new Map();
  for (const { labels, value } of all.get("edgekit_request_duration_seconds_bucket") || [])
    if (labels.model === model.name && labels.version === model.version)
      out.set(labels.le, (out.get(labels.le) || 0) + value);
  return out;
}

function quantile(now, old, share) { // as Prometheus' histogram_quantile
  const counts = [...now].map(([le, n]) => [le === "+Inf" ? Infinity : Number(le), n - (old.get(le) || 0)]);
  const wanted = share * (counts.length ? counts[counts.length - 1][1] : 0);
  if (!(wanted > 0)) return null;
  let low = 0, under = 0;
  for (const [le, n] of counts) {
    if (n >= wanted) return le === Infinity ? low : low + (le - low) * ((wanted - under) / (n - under));
    [low, under] = [le, n];
  }
  return low;
}

const time = (s) => (s === null ? "–" : s < 1e-3 ? `${(s * 1e6).toFixed(0)} µs` : s < 1 ? `${(s * 1e3).toFixed(1)} ms` : `${s.toFixed(2)} s`);
const number = (x) => (x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x.toFixed(2));

function element(tag, text = "", kind = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

function line(points) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const top = Math.max(...points, 1e-9);
  svg.setAttribute("viewBox", `0 0 ${POINTS} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  const path = document.createElementNS(svg.namespaceURI, "polyline");
  const start = POINTS - points.length;
  path.setAttribute("points", points.map((y, x) => `${start + x},${19 - (18 * y) / top}`).join(" "));
  svg.append(path);
  return svg;
}

async function configOf(model) {
  const key = JSON.stringify([model.name, model.version]);
  if (!configs.has(key)) {
    const path = `v2/models/${encodeURIComponent(model.name)}/versions/${encodeURIComponent(model.version)}/config`;
    const answer = await ask(path);
    configs.set(key, answer.ok ? await answer.json() : {});
  }
  return configs.get(key);
}

async function showModels(index, all, seconds) {
  const rows = [];
  for (const model of index) {
    const ready = model.state === "READY", config = ready ? await configOf(model) : {};
    const said = config.parameters || {};
    const delta = (name) => (before ? sum(all, name, model) - sum(before.all, name, model) : 0);
    const rate = seconds ? Math.max(0, delta("edgekit_requests_total")) / seconds : 0;
    const key = `${model.name}\n${model.version}`;
    const points = history.get(key) || [];
    points.push(rate);
    history.set(key, points.slice(-POINTS));
    const now = buckets(all, model), old = before ? buckets(before.all, model) : new Map();
    const runs = delta("edgekit_runs_total");
    const row = element("tr");
    row.append(
      element("td", model.name), element("td", model.version),
      element("td", said.variant ? said.variant.string_value : "–"),
      element("td", said.device ? said.device.string_value : "–"),
      element("td", ready ? "ready" : `${model.state.toLowerCase()}: ${model.reason}`, ready ? "good" : "bad"),
      element("td", number(rate), "n"), element("td", time(quantile(now, old, 0.5)), "n"),
      element("td", time(quantile(now, old, 0.99)), "n"),
      element("td", runs > 0 ? number(delta("edgekit_rows_total") / runs) : "–", "n"),
      element("td", String(sum(all, "edgekit_queue_length", model)), "n"),
      element("td", String(sum(all, "edgekit_failures_total", model)), "n"),
    );
    const chart = element("td");
    chart.append(line(history.get(key)));
    row.append(chart);
    rows.push(row);
  }
  byId("models").replaceChildren(...rows);
  const names = [...new Set(index.filter((m) => m.state === "READY").map((m) => m.name))], select = byId("model");
  if (JSON.stringify(names) !== JSON.stringify([...select.options].map((o) => o.value)))
    select.replaceChildren(...names.map((name) => new Option(name)));
}

function card(value, text, kind = "") {
  const node = element("div", "", "card");
  node.append(element("b", value, kind), element("span", text));
  return node;
}

function showMachine(all) {
  const cards = [];
  for (const { labels, value } of all.get("edgekit_power_watts") || []) cards.push(card(`${value.toFixed(2)} W`, labels.rail));
  for (const { labels, value } of all.get("edgekit_energy_joules_total") || [])
    if (value > 0) cards.push(card(`${number(value)} J`, `${labels.rail}, since the start`));
  for (const { value } of all.get("edgekit_thermal_headroom_celsius") || []) cards.push(card(`${value.toFixed(1)} °C`, "until it slows down"));
  for (const { labels, value } of all.get("edgekit_temperature_celsius") || []) cards.push(card(`${value.toFixed(1)} °C`, labels.zone));
  for (const { labels, value } of all.get("edgekit_throttled") || [])
    if (value) cards.push(card("slowed down", labels.cause, "bad"));
  for (const { labels, value } of all.get("edgekit_load_ratio") || []) cards.push(card(`${(100 * value).toFixed(0)} %`, `load of ${labels.part}`));
  const memory = (all.get("process_resident_memory_bytes") || []).reduce((total, s) => total + s.value, 0);
  if (memory) cards.push(card(`${(memory / 2 ** 20).toFixed(0)} MiB`, "memory of the server"));
  if (cards.length) byId("machine").replaceChildren(...cards);
}

function showState(text, good) {
  byId("state").textContent = text;
  byId("state").className = `badge ${good ? "good" : "bad"}`;
}

async function look() {
  try {
    const [metrics, index, health] = await Promise.all([
      ask("metrics"), ask("v2/repository/index", { method: "POST" }), ask("v2/health/ready")]);
    if (health.ok) showState("ready", true);
    else showState(health.status === 503 ? (await health.json()).reason : "not ready", false);
    if (metrics.ok && index.ok) {
      const all = series(await metrics.text()), now = performance.now();
      const seconds = before ? (now - before.now) / 1000 : 0;
      await showModels(await index.json(), all, seconds);
      showMachine(all);
      before = { all, now };
    }
  } catch (error) {
    showState("does not answer", false);
  }
  setTimeout(look, PERIOD_MS);
}

async function fill() {
  const answer = await ask(`v2/models/${encodeURIComponent(byId("model").value)}/sample`);
  const text = await answer.text();
  sample = null;
  if (!answer.ok) byId("answer").textContent = text;
  else if (text.length > SHOWN_CHARACTERS) {
    sample = text;
    byId("body").value = `(a sample of ${text.length} characters, sent as it is)`;
  } else byId("body").value = text;
  byId("file").value = "";
}

async function send(event) {
  event.preventDefault();
  const file = byId("file").files[0], name = encodeURIComponent(byId("model").value);
  if (!file && !byId("body").value) await fill();
  const options = file ? { body: file, headers: { "Content-Type": file.type } }
    : { body: sample || byId("body").value, headers: { "Content-Type": "application/json" } };
  const began = performance.now();
  const answer = await ask(`v2/models/${name}/infer`, { method: "POST", ...options });
  const text = await answer.text();
  const joules = answer.headers.get("x-energy-joules");
  byId("took").textContent = `${answer.status}, ${(performance.now() - began).toFixed(1)} ms` +
    (joules ? `, ${joules} J (${answer.headers.get("x-energy-source")})` : "");
  byId("answer").textContent = text.slice(0, SHOWN_CHARACTERS) + (text.length > SHOWN_CHARACTERS ? "…" : "");
  byId("answer").className = answer.ok ? "" : "bad";
}

byId("send").addEventListener("submit", send);
byId("fill").addEventListener("click", fill);
byId("body").addEventListener("input", () => { sample = null; });
byId("model").addEventListener("change", () => { byId("body").value = ""; sample = null; });
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value;
  configs.clear();
  byId("token-form").hidden = true;
});
ask("v2").then((answer) => (answer.ok ? answer.json() : {})).then((it) => {
  byId("about").textContent = it.version || "";
});
look();
