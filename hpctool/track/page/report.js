// Draws the report from the JSON in the page. No library, nothing is loaded; all text from runs is set as text.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { runs, metric, settings, metrics } = data;
  const up = data.more_is_better;
  const value = (run) => run.metrics[metric];
  const better = (a, b) => (up ? a > b : a < b);
  // What failed may have been good before; it is the best only where nothing has completed.
  const done = runs.filter((run) => run.state === "completed" && value(run) !== undefined);
  const best = (done.length ? done : runs).reduce((won, run) => (value(run) !== undefined && (!won || better(value(run), value(won))) ? run : won), null);
  const chosen = { brushes: new Map(), words: "", sort: { key: metric || "created", down: metric ? up : true } };

  // ---- small things

  const make = (tag, attributes = {}, ...children) => {
    const svg = ["svg", "path", "line", "circle", "rect", "text", "g", "title"].includes(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, text] of Object.entries(attributes)) element.setAttribute(name, text);
    element.append(...children.filter((child) => child !== null && child !== undefined).map((c) => (c.nodeType ? c : String(c))));
    return element;
  };
  const put = (id, ...children) => document.getElementById(id).replaceChildren(...children);
  const short = (x) => {
    if (x === null || x === undefined) return "";
    if (typeof x !== "number") return String(x);
    if (Number.isInteger(x) && Math.abs(x) < 1e7) return String(x);
    return Number(x.toPrecision(4)).toString();
  };
  const extent = (values) => {
    let low = Infinity, high = -Infinity;
    for (const x of values) { if (x < low) low = x; if (x > high) high = x; }
    if (low === high) { low -= Math.abs(low) / 10 || 1; high += Math.abs(high) / 10 || 1; }
    return [low, high];
  };
  const ticks = (low, high, count) => {
    const raw = (high - low) / count, size = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((n) => n * size).find((n) => n >= raw);
    const found = [];
    for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-9; x += step) found.push(Number(x.toPrecision(12)));
    return found;
  };
  // From blue to orange: what is good is warm.
  const colour = (share) => {
    const from = [120, 150, 190], to = [205, 85, 30];
    return `rgb(${from.map((f, i) => Math.round(f + (to[i] - f) * share)).join(",")})`;
  };
  const [worstValue, bestValue] = (() => {
    const [low, high] = extent(runs.map(value).filter((x) => x !== undefined).concat(runs.some((r) => value(r) !== undefined) ? [] : [0]));
    return up ? [low, high] : [high, low];
  })();
  const colourOf = (run) => (value(run) === undefined ? "#b4bfcc" : colour((value(run) - worstValue) / (bestValue - worstValue)));

  // ---- which runs are shown

  const scales = new Map();
  const matches = (run) => {
    for (const [key, [low, high]] of chosen.brushes) {
      const place = scales.get(key)(run);
      if (place === null || place < low || place > high) return false;
    }
    return !chosen.words || chosen.words.split(/\s+/).every((word) => run.text.includes(word));
  };
  for (const run of runs) {
    const told = Object.entries(run.settings).map(([k, v]) => `${k}=${short(v)}`);
    run.text = [run.id, run.state, run.cause, run.sweep, run.by, ...told].join(" ").toLowerCase();
  }

  // ---- the head

  const unit = runs.some((run) => run.is_gpu) ? "GPU-hours" : "CPU-hours";
  const total = runs.reduce((sum, run) => sum + run.hours, 0);
  const lost = total ? runs.reduce((sum, run) => sum + run.hours * run.lost, 0) / total : 0;
  const states = {};
  for (const run of runs) states[run.state] = (states[run.state] || 0) + 1;
  document.getElementById("title").textContent = data.title;
  put("made", "made ", data.made.slice(0, 16).replace("T", " "), " UTC by ", make("code", {}, data.command));
  const tile = (big, small) => make("div", { class: "tile" }, make("b", {}, big), make("span", { class: "soft small" }, small));
  put("tiles",
    tile(`${runs.length} run${runs.length === 1 ? "" : "s"}`, Object.entries(states).map(([state, n]) => `${n} ${state}`).join(", ") || "no runs"),
    ...(best ? [tile(short(value(best)), `best ${metric}, ${up ? "more" : "less"} is better`), tile(best.id, "the best run")] : []),
    tile(short(Number(total.toPrecision(3))), `${unit}${lost >= 0.001 ? `, ${short(Number((100 * lost).toPrecision(2)))} % of it done twice` : ""}`));

  // ---- charts

  const frame = (width, height, left, bottom, [x0, x1], [y0, y1], xName, yName) => {
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    const x = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - 12), y = (v) => height - bottom - ((v - y0) / (y1 - y0)) * (height - bottom - 28);
    for (const t of ticks(y0, y1, 5)) svg.append(make("line", { class: "grid", x1: left, x2: width - 12, y1: y(t), y2: y(t) }), make("text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, short(t)));
    for (const t of ticks(x0, x1, 6)) svg.append(make("text", { x: x(t), y: height - bottom + 15, "text-anchor": "middle" }, short(t)));
    svg.append(make("line", { class: "axis", x1: left, x2: width - 12, y1: height - bottom, y2: height - bottom }));
    svg.append(make("text", { x: width - 12, y: height - 3, "text-anchor": "end" }, xName), make("text", { class: "name", x: 2, y: 11 }, yName));
    return { svg, x, y };
  };
  const none = (text) => make("p", { class: "soft small" }, text);

  const drawCost = () => {
    const done = runs.filter((run) => value(run) !== undefined && run.ended_s).sort((a, b) => a.ended_s - b.ended_s);
    if (done.length < 2) return put("cost", none("Nothing to draw before two runs have ended."));
    let spent = 0, won;
    const points = done.map((run) => { spent += run.hours; won = won === undefined || better(value(run), won) ? value(run) : won; return { spent, won, run }; });
    const { svg, x, y } = frame(560, 250, 52, 34, [0, spent || 1], extent(points.flatMap((p) => [p.won, value(p.run)])), unit, metric);
    for (const p of points) svg.append(make("circle", { class: "dot", cx: x(p.spent), cy: y(value(p.run)), r: 3 }, make("title", {}, `${p.run.id}: ${short(value(p.run))}`)));
    svg.append(make("path", { class: "best", d: points.map((p, i) => (i ? `H${x(p.spent)}V${y(p.won)}` : `M${x(p.spent)},${y(p.won)}`)).join("") }));
    put("cost", svg);
  };

  // Horizontal bars: each has a key, a share of the whole width, words behind it and more words on hovering.
  const bars = (rows) => {
    const clip = (text) => (text.length > 30 ? `…${text.slice(-29)}` : text);
    // Letters of 11 px are some 6.5 px wide, bold ones 7.
    const left = 7 * Math.max(...rows.map((row) => clip(row.key).length)) + 10, room = 540 - left - 6.5 * Math.max(...rows.map((row) => row.text.length));
    const svg = make("svg", { viewBox: `0 0 560 ${26 * rows.length + 10}`, role: "img" });
    rows.forEach((row, i) => svg.append(
      make("text", { class: "name", x: left - 8, y: 26 * i + 20, "text-anchor": "end" }, clip(row.key)),
      make("rect", { class: "bar", x: left, y: 26 * i + 9, width: Math.max(1, room * row.share), height: 14, rx: 2 }, make("title", {}, row.about || "")),
      make("text", { x: left + 8 + room * row.share, y: 26 * i + 20 }, row.text)));
    return svg;
  };

  const drawImportance = () => {
    const rows = data.importance.map((row) => ({ ...row, text: `${Math.round(100 * row.share)} %`, about: `${row.groups} groups, ${row.runs} runs` }));
    if (!rows.length) return put("importance", none("Too few runs, or nothing varied, to tell."));
    document.getElementById("importance-about").textContent = "each setting alone: eta² of the ranks";
    put("importance", bars(rows));
  };

  const drawParallel = () => {
    const keys = [...settings, ...(metric ? [metric] : [])];
    if (!settings.length || runs.length < 2) return document.getElementById("parallel-box").remove();
    const width = 1120, height = 300, svg = make("svg", { viewBox: `0 0 ${width} ${height}` }), place = (i) => 110 + (i * (width - 220)) / Math.max(keys.length - 1, 1);
    const lines = make("g");
    svg.append(lines);
    keys.forEach((key, i) => {
      const of = (run) => (i < settings.length ? run.settings[key] : run.metrics[key]);
      const there = runs.map(of).filter((v) => v !== undefined && v !== null);
      const numeric = there.length && there.every((v) => typeof v === "number");
      let scale, marks;
      if (numeric) {
        const log = there.every((v) => v > 0) && Math.max(...there) / Math.min(...there) > 50;
        const map = log ? Math.log10 : (v) => v, [low, high] = extent(there.map(map));
        scale = (v) => (map(v) - low) / (high - low);
        marks = [...new Set(there)].length <= 8 ? [...new Set(there)] : (log ? ticks(low, high, 4).map((t) => 10 ** t) : ticks(low, high, 4));
      } else {
        const words = [...new Set(there.map(String))].sort();
        scale = (v) => (words.length > 1 ? words.indexOf(String(v)) / (words.length - 1) : 0.5);
        marks = words.length <= 24 ? words : [words[0], words[words.length - 1]];
      }
      scales.set(key, (run) => { const v = of(run); return v === undefined || v === null ? null : scale(v); });
      const y = (share) => 268 - share * 226;
      svg.append(make("line", { class: "axis", x1: place(i), x2: place(i), y1: 42, y2: 268 }), make("text", { class: "name", x: place(i), y: keys.length > 6 && i % 2 ? 14 : 28, "text-anchor": "middle" }, key.length > 22 ? `…${key.slice(-21)}` : key));
      for (const mark of marks) svg.append(make("text", { class: "halo", x: place(i) + (i ? 8 : -8), y: y(scale(mark)) + 4, "text-anchor": i ? "start" : "end" }, short(mark).slice(0, 18)));
      const brush = make("rect", { class: "brush", x: place(i) - 8, width: 16, visibility: "hidden" }), area = make("rect", { class: "catch", x: place(i) - 14, y: 36, width: 28, height: 238, "data-key": key });
      let from = null;
      const at = (event) => { const box = svg.getBoundingClientRect(); return Math.min(1.02, Math.max(-0.02, (268 - ((event.clientY - box.top) * height) / box.height) / 226)); };
      const show = (a, b) => { brush.setAttribute("y", y(Math.max(a, b))); brush.setAttribute("height", Math.abs(a - b) * 226); brush.setAttribute("visibility", "visible"); };
      area.addEventListener("pointerdown", (event) => { from = at(event); area.setPointerCapture(event.pointerId); });
      area.addEventListener("pointermove", (event) => { if (from !== null) show(from, at(event)); });
      area.addEventListener("pointerup", (event) => {
        const to = at(event);
        if (Math.abs(to - from) < 0.02) { chosen.brushes.delete(key); brush.setAttribute("visibility", "hidden"); }
        else chosen.brushes.set(key, [Math.min(from, to), Math.max(from, to)]);
        from = null;
        update();
      });
      svg.append(brush, area);
    });
    for (const run of runs) {
      let path = "";
      keys.forEach((key, i) => { const v = scales.get(key)(run); if (v !== null) path += `${path ? "L" : "M"}${place(i)},${268 - v * 226}`; });
      run.thread = make("path", { class: "line", d: path, stroke: colourOf(run) }, make("title", {}, `${run.id}${value(run) === undefined ? "" : `: ${short(value(run))}`}`));
      lines.append(run.thread);
    }
    put("parallel", svg);
  };

  const drawCurves = () => {
    const select = document.getElementById("curve");
    const there = data.curves.filter((name) => runs.some((run) => run.curves[name]));
    if (!there.length) return document.getElementById("curves-box").remove();
    if (!select.options.length) {
      select.append(...there.map((name) => make("option", {}, name)));
      select.addEventListener("change", drawCurves);
    }
    const name = select.value, shown = runs.filter((run) => run.curves[name]);
    const { svg, x, y } = frame(1120, 320, 60, 34, extent(shown.flatMap((run) => run.curves[name][0])), extent(shown.flatMap((run) => run.curves[name][1])), "step", name);
    const about = document.getElementById("curves-about"), hint = "Point at a curve to see whose it is.";
    about.textContent = hint;
    for (const run of [...shown].sort((a, b) => (a === best) - (b === best))) {
      const [steps, values] = run.curves[name];
      const d = steps.map((s, i) => `${i ? "L" : "M"}${x(s).toFixed(1)},${y(values[i]).toFixed(1)}`).join("");
      // What was measured once is a point.
      run.curve = make("path", { class: steps.length > 1 ? "line" : "line point", d: steps.length > 1 ? d : `${d}h0`, stroke: colourOf(run) });
      run.curve.addEventListener("pointerenter", () => { run.curve.classList.add("on"); about.textContent = `${run.id}  ${settings.map((k) => `${k}=${short(run.settings[k])}`).join("  ")}  ${metric} ${short(value(run))}`; });
      run.curve.addEventListener("pointerleave", () => { run.curve.classList.remove("on"); about.textContent = hint; });
      svg.append(run.curve);
    }
    put("curves", svg);
    update();
  };

  // ---- tables

  const columns = [
    { key: "id", of: (run) => run.id, class: "id" },
    { key: "state", of: (run) => run.state },
    ...settings.map((key) => ({ key, of: (run) => run.settings[key] })),
    ...metrics.map((key) => ({ key, of: (run) => run.metrics[key] })),
    { key: "step", of: (run) => run.step || undefined },
    { key: unit, of: (run) => run.hours || undefined },
    { key: "created", of: (run) => run.created.slice(0, 16).replace("T", " ") },
  ];
  const ordered = () => {
    const { of } = columns.find((column) => column.key === chosen.sort.key) || columns[0], sign = chosen.sort.down ? -1 : 1;
    const missing = (v) => v === undefined || v === null || v === "";
    return [...runs].sort((a, b) => {
      const p = of(a), q = of(b);
      if (missing(p) || missing(q)) return missing(p) - missing(q);
      return sign * (typeof p === "number" && typeof q === "number" ? p - q : String(p).localeCompare(String(q)));
    });
  };
  const detail = (run) => {
    const parts = [run.cause && `${run.state}: ${run.cause}`, `${run.job} by ${run.by}, ${run.attempts} attempt${run.attempts === 1 ? "" : "s"}`, run.sweep && `cell ${run.cell} of ${run.sweep}`, run.data && `data ${run.data}`, run.digest && `parameters ${run.digest}`];
    return make("tr", { class: "detail" }, make("td", { colspan: columns.length }, parts.filter(Boolean).join(" · "), make("br"), make("code", {}, `hpctool runs show ${run.id}`), " ", make("code", {}, `hpctool runs lineage ${run.id}`)));
  };
  const drawTable = () => {
    const heading = columns.map((column) => {
      const is = column.key === chosen.sort.key, numeric = runs.some((run) => typeof column.of(run) === "number");
      // A long name of a narrow column goes on in the next line.
      const parts = column.key.split(/(?<=[._/])/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
      const cell = make("th", { class: numeric ? "number" : "" }, ...parts, is ? (chosen.sort.down ? "\u00a0▾" : "\u00a0▴") : "");
      cell.addEventListener("click", () => { chosen.sort = { key: column.key, down: is ? !chosen.sort.down : numeric }; drawTable(); });
      return cell;
    });
    const body = make("tbody");
    for (const run of ordered().filter(matches)) {
      const cells = columns.map((column) => {
        const v = column.of(run), kind = column.class || (typeof v === "number" ? "number" : "");
        return make("td", { class: kind }, column.key === "state" ? make("span", { class: `state ${v}` }, v) : short(v));
      });
      const line = make("tr", { class: run === best ? "run best" : "run" }, ...cells);
      line.addEventListener("click", () => (line.nextSibling && line.nextSibling.classList.contains("detail") ? line.nextSibling.remove() : line.after(detail(run))));
      body.append(line);
    }
    put("runs", make("thead", {}, make("tr", {}, ...heading)), body);
    document.getElementById("count").textContent = body.children.length === runs.length ? `all ${runs.length}` : `${body.children.length} of ${runs.length}`;
  };
  const sheet = (head, rows) => [make("thead", {}, make("tr", {}, ...head.map((text) => make("th", {}, text)))), make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", { class: typeof cell === "number" ? "number" : "" }, typeof cell === "number" ? short(cell) : cell)))))];
  const drawCauses = () => {
    if (!data.causes.length) return document.getElementById("causes-box").remove();
    put("causes", ...sheet(["runs", "state", "cause", "such as"], data.causes.map((one) => [one.count, make("span", { class: `state ${one.state}` }, one.state), one.cause || "–", one.runs[0]])));
  };
  const drawSections = () => put("sections", ...data.sections.map((one) => make("section", {}, make("h2", {}, one.title), ...(one.sentences || []).map((text) => make("p", {}, text)), ...(one.bars ? [make("figure", { class: "half" }, bars(one.bars))] : []), ...(one.rows ? [make("div", { class: "sheet" }, make("table", {}, ...sheet(one.columns, one.rows)))] : []))));

  const update = () => {
    for (const run of runs) for (const path of [run.thread, run.curve]) if (path) path.classList.toggle("out", !matches(run));
    drawTable();
  };
  document.getElementById("filter").addEventListener("input", (event) => { chosen.words = event.target.value.trim().toLowerCase(); update(); });
  drawCost();
  drawImportance();
  drawParallel();
  drawCurves();
  drawCauses();
  drawSections();
  update();
})();
