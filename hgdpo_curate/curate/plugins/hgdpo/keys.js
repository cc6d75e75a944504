// The bar below the App: keys, buttons, counts, undo. A key acts on the open picture, or on all that are selected.
(function () {
  const h = React.createElement;
  const OURS = "@hgdpo/curate/";
  const ORDERS = { uncertain: "uncertain first", score: "worst score first", imported: "as imported" };
  const loaded = performance.getEntriesByType("resource").map((r) => r.name).find((u) => /hgdpo.*keys\.js/.test(u));
  const here = (document.currentScript && document.currentScript.src) || loaded || "";

  // --- what the bar knows: one object, and whoever draws from it is told of changes
  const S = {
    modal: null, looker: null, selected: [], view: null, patches: false, about: null, counts: null,
    panelAt: 0, selectAt: 0, progress: null,
    queue: [], panelKeys: [], last: null, busy: false, hold: null, toasts: [], help: false, asking: false, moveOn: true,
    panel: null, stale: false,
    reviewer: localStorage.getItem("hgdpo-reviewer") || "", paces: [], sent: Promise.resolve(), trail: [],
    // what only the grid can do; nothing, while a panel covers it since the page was loaded
    app: { refresh: () => null, update: () => null, select: () => null },
  };
  const drawers = new Set();
  const draw = () => drawers.forEach((f) => f({}));
  const useS = () => {
    const [, set] = React.useState({});
    React.useEffect(() => (drawers.add(set), () => drawers.delete(set)), []);
    return S;
  };
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

  // --- operators
  // FiftyOne tries again by itself: if the server comes back, the last decision may still be written
  const DOWN = "The App's server does not answer. Start it again, reload this page and look: a decision without a " +
    "green message may be missing.";
  const failed = (e) => {
    const why = (e && (e.errorMessage || e.message)) || e;
    return { refused: `It was not done: ${String(why).split("\n")[0]}` };
  };
  const isUp = () => fetch(location.origin + "/", { cache: "no-store" }).then(() => true, () => false);
  const ask = (name, params, ms = 30000) =>
    new Promise((done) => {
      const finish = (answer) => (clearTimeout(late), clearTimeout(soon), done(answer));
      // an operator that never answers does not block the keys for ever
      const late = setTimeout(() => finish({ refused: DOWN }), ms);
      // FiftyOne itself tries a server that is gone for long, without a word
      const soon = setTimeout(async () => (await isUp()) || finish({ refused: DOWN }), 2000);
      try {
        __foo__
          .executeOperator(OURS + name, params, {
            callback: (r) => {
              if (r && r.error) finish(failed(r.errorMessage ? r : r.error));
              else finish((r && r.result) || { refused: "The server gave no answer; press again." });
            },
          });
      } catch (e) {
        finish(failed(e));
      }
    });

  // --- toasts: what was done, of how many, with undo
  let serial = 0;
  function toast(text, { bad = false, undo = false, ms = bad ? 9000 : 5000 } = {}) {
    if (text === DOWN && S.toasts.some((t) => t.text === DOWN)) return;
    const one = { id: ++serial, text, bad, undo };
    S.toasts = [...S.toasts.slice(-2), one];
    draw();
    // stands until the page is loaded again
    if (text === DOWN) return;
    setTimeout(() => ((S.toasts = S.toasts.filter((t) => t !== one)), draw()), ms);
  }

  // --- what is open, what is selected
  const ready = async (id = S.modal) => {
    for (let n = 0; n < 400; n++) {
      const l = S.looker, state = l && l.state;
      const shown = l && l.sample && (l.sample._id === id || l.sample.id === id);
      const drawn = l && (l.loaded || (state && (state.loaded || state.error)));
      if (S.modal === null || (S.modal === id && shown && drawn)) return;
      await sleep(15);
    }
  };

  // FiftyOne asks for the next page by its number, and would skip as many pictures as were decided and have left the
  // view; so the order is kept as it was when a picture was opened.
  async function keepOrder(opened) {
    const { ids, files } = await ask("view_order", {});
    if (!ids || !ids.includes(opened)) return;
    const there = (offset) => {
      const at = ids.indexOf(S.modal) + offset;
      return ids.includes(S.modal) && at in ids ? at : null;
    };
    const go = (sign) => async (offset = 1) => {
      const at = there(sign * offset);
      return at === null ? null : { id: ids[at], hasNext: at + 1 in ids, hasPrevious: at > 0 };
    };
    const peek = async (offset) => {
      const at = there(offset);
      return at === null ? null : { id: ids[at], sample: { urls: { filepath: files[at] } } };
    };
    __fos__.modalNavigation.set({ next: go(1), previous: go(-1), peek });
  }

  async function moveOn() {
    const nav = __fos__.modalNavigation.get(), from = S.modal;
    if (!nav || !from) return;
    let next = null;
    if (await nav.peek(1).catch(() => null)) next = await nav.next(1).catch(() => null);
    else if (S.open && S.open.hasNext) next = await nav.next(1).catch(() => null);
    if (!next) return toast("The last picture of this view.", { ms: 2500 });
    S.trail.push(from);
    await S.app.expand(next);
    for (let n = 0; n < 100 && S.modal === from; n++) await sleep(10);
    await ready(next.id);
    prefetch();
  }

  async function prefetch() {
    const nav = __fos__.modalNavigation.get();
    for (const k of [1, 2]) {
      const found = nav && nav.peek ? await nav.peek(k).catch(() => null) : null;
      if (!found) return;
      const urls = found.sample && found.sample.urls;
      const url = Array.isArray(urls) ? (urls.find((u) => u.field === "filepath") || {}).url : urls && urls.filepath;
      if (url) fetch(__fos__.getSampleSrc(url), { priority: "low" }).catch(() => null);
    }
  }

  // --- deciding
  const SIMPLE = {
    a: ["approve", "approve"], d: ["reject", "reject"], u: ["duplicate", "duplicate"], e: ["undecide", "undecided"],
    0: ["clear", "clear flags"], y: ["approve_caption", "approve the caption"],
  };
  const FORMS = { g: "flag", t: "edit_caption" };
  const CAPTIONS = ["real: captions to read", "real: captions on identity"];
  // none of them decides anything or may be the key of a flag of one's own, so that haste names no part by mistake
  const PARTS = { h: "hand", f: "foot", s: "arm", l: "leg", c: "face", p: "head", o: "body" };
  const NATURAL = { bad_hand: "hand", bad_foot: "foot", deformed_face: "face", extra_face: "face" };
  const SIDED = ["hand", "foot", "arm", "leg"];
  const flagOf = (key) => S.about && S.about.flags.find((f) => f.key && f.key === key);

  // what an operator answered, to a key or from a form
  function heard(answer) {
    if (answer.refused) {
      toast(answer.refused, { bad: true });
      return answer;
    }
    if (answer.counts) (S.counts = answer.counts), (S.paces = [...S.paces.slice(-40), Date.now()]);
    if (answer.about) S.about = answer.about;
    if (answer.samples && answer.samples.length) S.app.update(answer.samples.map((s) => [s._id, s]));
    toast(answer.said + (answer.of ? ` · ${answer.of}` : ""), { undo: answer.undo });
    if (S.modal === null) S.app.refresh();
    else S.stale = true;
    countAgain();
    draw();
    return answer;
  }
  const ours = () => ({ by_key: true, reviewer: S.reviewer, view_name: S.view });
  const send = async (name, params) => heard(await ask(name, { ...params, ...ours() }));
  const openForm = (name) => {
    const callback = (r) => (r && r.result ? heard(r.result) : r && r.error && heard(failed(r)));
    S.app.form(OURS + name, ours(), { callback });
  };
  // one after the other, in the order of the keys
  const inTurn = (work) => (S.sent = S.sent.then(work, work));

  // A key names a part unless it does something itself: in the bar, or in the panel that takes the keys.
  const inPanel = () => S.panel && S.modal === null && (!S.selected.length || S.panelAt >= S.selectAt);
  const partOf = (key) => (known(key) || (inPanel() && S.panel.takes(key)) ? undefined : PARTS[key]);

  // After a flag one more key names the part; shift of it the right side. Any other key, or none in time, names none.
  async function whichPart(item, flag) {
    const natural = NATURAL[flag.name] || "";
    S.hold = { flag, natural };
    draw();
    for (let n = 0; n < 60 && !item.second && S.last === item; n++) await sleep(15);
    item.closed = true;
    S.hold = null;
    draw();
    const part = item.second && PARTS[item.second.key];
    if (!part) return { part: natural, side: "" };
    return { part, side: SIDED.includes(part) ? (item.second.shift ? "right" : "left") : "" };
  }

  async function decideBy(item, ids) {
    const inModal = S.modal !== null, key = item.key;
    const flag = flagOf(key);
    let name, params = { sample_ids: ids };
    if (flag) [name, params] = ["flag", { ...params, flag: flag.name, ...(await whichPart(item, flag)) }];
    else [name] = SIMPLE[key];
    const sent = inTurn(() => send(name, params));
    if (!inModal) {
      const answer = await sent;
      // what was decided may have left the view, and would be acted on unseen; shift keeps it selected
      if (!item.shift && answer && !answer.refused) S.app.select(new Map());
      return answer;
    }
    // shift keeps the picture, and so does the switch in the bar
    if (!item.shift && S.moveOn) await moveOn();
    else await sent;
  }

  // The progress panel, where it is open, counts again once the keys rest for a moment.
  let counting = 0;
  function countAgain() {
    clearTimeout(counting);
    if (S.progress) counting = setTimeout(() => ask("count_again", { panel: S.progress, reviewer: S.reviewer }), 600);
  }

  async function takeBack() {
    const answer = await inTurn(() => send("undo", {}));
    const back = answer && answer.samples && answer.samples[0];
    // the picture that was decided is shown again
    if (!back || S.modal === null || back._id === S.modal || S.trail.at(-1) !== back._id) return;
    S.trail.pop();
    const nav = __fos__.modalNavigation.get(), before = S.modal;
    const item = nav && (await nav.previous(1).catch(() => null));
    if (!item) return;
    await S.app.expand(item);
    for (let n = 0; n < 100 && S.modal === before; n++) await sleep(10);
    await ready(item.id);
  }

  async function act(item) {
    if (item.key === "undo") return takeBack();
    if (S.modal !== null) await ready();
    const ids = S.modal !== null ? [S.modal] : S.selected;
    if (item.key === "n" && S.modal === null) return ask("next", {});
    if (item.key === "n") return moveOn();
    if (!ids.length) return toast("Open a picture, or select some, and press again.", { bad: true, ms: 3000 });
    if (item.key in FORMS) return openForm(FORMS[item.key]);
    if (item.key === "w") return inTurn(() => send("swap", { sample_ids: ids }));
    return decideBy(item, ids);
  }

  async function work() {
    if (S.busy) return;
    S.busy = true;
    draw();
    while (S.queue.length) {
      const item = S.queue.shift();
      try {
        await act(item);
      } catch (err) {
        toast(`It was not done: ${(err && err.message) || err}`, { bad: true });
      }
      item.closed = true;
      draw();
    }
    await S.sent.catch(() => null);
    S.busy = S.queue.length > 0;
    draw();
    if (S.busy) {
      S.busy = false;
      work();
    }
  }

  function named() {
    if (!S.reviewer) (S.asking = true), draw(), toast("Say first who decides.", { bad: true, ms: 2500 });
    return !!S.reviewer;
  }

  function press(key, shift = false) {
    if (!S.about) return toast("One moment; the workspace is being read.", { bad: true, ms: 2000 });
    if (!named()) return;
    S.queue.push((S.last = { key, shift }));
    draw();
    work();
  }

  const typing = (el) => el && (/^(INPUT|TEXTAREA|SELECT)$/.test(el.tagName) || el.isContentEditable);
  const known = (k) => k in SIMPLE || k in FORMS || "wn".includes(k) || !!flagOf(k);

  function onKey(e) {
    if (typing(document.activeElement)) return;
    // while boxes are drawn the keys are FiftyOne's
    if (S.annotating && S.modal !== null) return;
    const undo = e.key === "Backspace" || ((e.ctrlKey || e.metaKey) && e.key.toLowerCase() === "z");
    if (!undo && (e.ctrlKey || e.metaKey || e.altKey)) return;
    const stop = () => (e.preventDefault(), e.stopImmediatePropagation());
    if (S.help && e.key === "Escape") return stop(), (S.help = false), draw();
    if (e.key === "?") return stop(), (S.help = !S.help), draw();
    // a digit by its place, so that shift does not make it a sign
    const digit = /^Digit(\d)$/.exec(e.code || "");
    const plain = e.key.length === 1 ? e.key.toLowerCase() : e.key;
    const key = undo ? "undo" : digit && (e.shiftKey || /^\d$/.test(e.key)) ? digit[1] : plain;
    // the newest key of all, also where it still waits for its picture; once its part is settled it takes no other
    const flagged = S.last && flagOf(S.last.key) && !S.last.second && !S.last.closed;
    const second = flagged && (partOf(key) || key === "Enter");
    // a panel of ours takes the keys, unless pictures were selected in the grid since
    const panelFirst = inPanel() && !second && S.panel.takes(key);
    if (!panelFirst && !undo && !second && !(key.length === 1 && known(key))) return;
    // nothing open and nothing selected: the letters are FiftyOne's, except those that need no picture
    stop();
    if (e.repeat && !(panelFirst && /^Arrow/.test(key))) return flash();
    if (panelFirst) return S.panel.key(key, e.shiftKey);
    if (second) return (S.last.second = { key, shift: e.shiftKey }), draw();
    press(key, e.shiftKey);
  }
  window.addEventListener("keydown", onKey, true);

  function flash() {
    const bar = document.querySelector("[data-cy=hgdpo-bar]");
    bar && bar.animate([{ background: "#7a2340" }, {}], 300);
  }

  // --- what is drawn
  const CSS = `
    #root { padding-bottom: 36px; box-sizing: border-box; }
    .hg-bar { position: fixed; left: 0; right: 0; bottom: 0; height: 36px; z-index: 100000; display: flex; gap: 3px;
      align-items: center; padding: 0 8px; background: #20252c; color: #e6e9ee; font: 13px system-ui, sans-serif;
      border-top: 1px solid #3a424d; white-space: nowrap; }
    .hg-bar button, .hg-toast button, .hg-box button { font: inherit; color: inherit; background: #323a45; border: 0;
      border-radius: 4px; padding: 4px 5px; cursor: pointer; }
    .hg-bar button:hover, .hg-toast button:hover, .hg-box button:hover { background: #46515f; }
    .hg-bar b, .hg-box kbd { font-weight: 600; color: #ffd166; font-family: inherit; }
    .hg-count { flex: 1; overflow: hidden; text-overflow: ellipsis; min-width: 60px; padding: 0 6px; }
    .hg-gap { width: 6px; }
    .hg-toasts { position: fixed; left: 0; right: 0; bottom: 44px; z-index: 100001; display: flex;
      flex-direction: column; align-items: flex-start; gap: 4px; padding-left: 12px; pointer-events: none; }
    .hg-toast { pointer-events: auto; background: #1d6f46; color: #fff; padding: 6px 12px; border-radius: 6px;
      font: 14px system-ui, sans-serif; box-shadow: 0 2px 8px #0008; display: flex; gap: 10px; align-items: center; }
    .hg-toast.bad { background: #8d2742; }
    .hg-read { position: fixed; left: 0; right: 0; bottom: 36px; z-index: 100000; max-height: 30vh; overflow: auto;
      background: #20252cee; color: #e6e9ee; font: 16px/1.4 system-ui, sans-serif; padding: 8px 16px; text-align: center; }
    .hg-read i { color: #ffd166; font-style: normal; } .hg-read small { opacity: .75; margin-left: 10px; } .hg-read + .hg-toasts { bottom: 96px; }
    .hg-box { position: fixed; z-index: 100002; right: 12px; bottom: 46px; max-width: min(1080px, 94vw);
      max-height: 80vh;
      overflow: auto; background: #262c35; color: #e6e9ee; padding: 14px 18px; border-radius: 8px;
      font: 14px/1.5 system-ui, sans-serif; box-shadow: 0 4px 20px #000a; }
    .hg-box table { border-collapse: collapse; } .hg-box td { padding: 1px 10px 1px 0; vertical-align: top; }
    .hg-cols { display: flex; gap: 28px; flex-wrap: wrap; } .hg-box h4 { margin: 2px 0 4px; }
    .hg-who input { font: inherit; width: 130px; }
    [data-cy="looker"] { container-type: inline-size; user-select: none; }
    [data-cy="looker"] [class*="lookerTags"] { max-height: 34%; overflow: hidden; }
    @container (max-width: 170px) { [class*="lookerTags"] { max-height: 15px; font-size: 10px !important;
      line-height: 13px !important; flex-wrap: nowrap !important; }
      [class*="lookerTags"] > * { line-height: 12px !important;
      padding: 0 2px !important; margin: 0 1px !important; } }
    @container (max-width: 90px) { [class*="lookerTags"] { display: none !important; } }
    @media (max-width: 1180px) { .hg-word { display: none; } }
    @media (max-width: 1100px) { a[href*="why-upgrade"] { display: none !important; } }
    @media (max-width: 720px) { .hg-count { display: none; } }
  `;
  const style = document.createElement("style");
  style.textContent = CSS;
  document.head.append(style);

  const Button = (key, words, title, onClick) =>
    h("button", { title, onClick: onClick || (() => press(key)), onMouseDown: (e) => e.preventDefault() },
      h("b", null, key === "undo" ? "⌫" : key), h("span", { className: "hg-word" }, " " + words));

  function pace() {
    const steps = S.paces.slice(1).map((t, n) => (t - S.paces[n]) / 1000).filter((s) => s < 60).sort((a, b) => a - b);
    return steps.length >= 5 ? steps[steps.length >> 1] : (S.about && S.about.seconds) || 0;
  }

  function countsInWords() {
    const c = S.counts;
    if (!c) return "";
    const minutes = Math.max(1, Math.round((pace() * c.left) / 60));
    const rest = c.left && pace() ? `; about ${minutes} minute${minutes > 1 ? "s" : ""} at your pace` : "";
    return `${c.approved} approved, ${c.rejected} rejected, ${c.left} left${rest}`;
  }

  const DRAWING = "Boxes are drawn: the keys are FiftyOne's until Explore is chosen";

  function HoldWords() {
    const { flag, natural } = S.hold;
    const words = Object.entries(PARTS).filter(([k]) => partOf(k))
      .map(([k, p]) => h("span", { key: k }, h("b", null, k), " " + p + "  "));
    return h("span", { className: "hg-count", "data-cy": "hgdpo-hold" },
      `${flag.words}${natural ? ` (${natural})` : ""}: `,
      words, "shift: right side; ", h("b", null, "enter"), " none");
  }

  function Who() {
    if (!S.asking)
      return h("button", { title: "Who decides; click to change", "data-cy": "hgdpo-who",
        onClick: () => ((S.asking = true), draw()) }, S.reviewer || "who decides?");
    const offered = S.reviewer || (S.about && S.about.reviewer) || "";
    const done = (name) => {
      S.reviewer = (name || "").trim();
      if (S.reviewer) localStorage.setItem("hgdpo-reviewer", S.reviewer), (S.asking = false);
      if (S.reviewer) unsigned.splice(0).forEach(takeBoxes);
      draw();
    };
    return h("span", { className: "hg-who" }, "who decides? ", h("input", {
      autoFocus: true, defaultValue: offered, "data-cy": "hgdpo-name",
      onFocus: (e) => e.target.select(),
      onKeyDown: (e) => (e.stopPropagation(), e.key === "Enter" && done(e.target.value)),
      // a name that is only offered is nobody's until they say so
      onBlur: (e) => (S.reviewer || e.target.value !== offered) && done(e.target.value),
    }));
  }

  const rowsOf = (pairs) => h("table", null, h("tbody", null, pairs.map(([k, w]) =>
    h("tr", { key: k + w }, h("td", null, h("kbd", null, k)), h("td", null, w)))));

  function Help() {
    const flags = (S.about ? S.about.flags : []).filter((f) => f.key);
    return h("div", { className: "hg-box", "data-cy": "hgdpo-help" }, h("div", { className: "hg-cols" },
      h("div", null, h("h4", null, "Deciding"), rowsOf([
        ["a", "approve"], ["d", "reject"], ["u", "duplicate; of several the first stays"], ["e", "back to undecided"],
        ["w", "swap winner and loser"], ["y", "approve the caption; again: take that back"],
        ["t", "read or edit the caption"], ["⌫", "take back, several in a row"], ["n", "next"],
        ["Annotate", "field redraw: boxes to generate anew"],
        ["shift", "with a key: stay on this picture"], ["?", "this list"],
      ]), "Keys act on the open picture,", h("br"), "or on all that are selected in the grid."),
      h("div", null, h("h4", null, "Flagging"), rowsOf([...flags.map((f) => [f.key, f.words]),
        ["g", "all flags, in a form"],
        ["0", "clear flags"]]), "Within a second after a flag:", h("br"),
        Object.entries(PARTS).filter(([k]) => !known(k)).map(([k, p]) => `${k} ${p}`).join(", "), h("br"),
        "with shift: the right side of the picture"),
      h("div", null, h("h4", null, "FiftyOne's"), rowsOf([["← →", "previous, next"],
        ["z", "crop to what is labelled"],
        ["+ −", "zoom"], ["x", "select this picture"], ["j", "all fields as JSON"], ["esc", "reset, then close"],
        ["↑ ↓", "turn overlapping labels"]]),
        h("h4", null, "In the panels"), rowsOf([["l r", "flags go left, right (pair)"], ["← →", "previous, next"],
        ["w d", "swap, reject the pair"]]))));
  }

  // Where captions are read, the whole of it: the sidebar cuts it.
  function Caption() {
    const l = S.looker, sample = (CAPTIONS.includes(S.view) && S.modal !== null && l && l.sample) || {};
    if (!sample.prompt || ![sample._id, sample.id].includes(S.modal)) return null;
    const by = sample.caption_approved_by ? `approved by ${sample.caption_approved_by}` : `by ${sample.caption_by}`;
    const identity = sample.caption_identity && ` It speaks of identity or origin: ${sample.caption_identity}.`;
    return h("div", { className: "hg-read", "data-cy": "hgdpo-caption" }, sample.prompt, identity && h("i", null, identity),
      h("small", null, by, "; ", h("b", null, "y"), " approves, ", h("b", null, "t"), " edits"));
  }

  function Bar() {
    const s = useS();
    const waits = s.queue.length + Math.max(0, s.panelKeys.length - 1), sign = waits ? `${waits} waiting` : "";
    return h(React.Fragment, null,
      h(Caption),
      h("div", { className: "hg-toasts", role: "status" }, s.toasts.map((t) =>
        h("div", { key: t.id, className: "hg-toast" + (t.bad ? " bad" : ""), "data-cy": "hgdpo-toast" }, t.text,
          t.undo && h("button", { onClick: () => press("undo") }, "undo")))),
      s.help && h(Help),
      h("div", { className: "hg-bar", "data-cy": "hgdpo-bar" },
        h(Who), h("span", { className: "hg-gap" }),
        s.hold ? h(HoldWords) : h("span", { className: "hg-count", "data-cy": "hgdpo-counts", title: countsInWords() },
          s.annotating && s.modal !== null ? DRAWING : sign || countsInWords()),
        Button("a", "approve", "Approve"), Button("d", "reject", "Reject"),
        Button("u", "duplicate", "Mark as duplicates"),
        Button("e", "undecided", "Back to undecided"), h("span", { className: "hg-gap" }),
        Button("g", "flag…", "Flags; 1 to 9 at once, see the list of keys"), Button("0", "clear", "Clear flags"),
        Button("w", "swap", "Swap winner and loser"),
        Button("t", "caption", "Read, edit or approve the caption"), h("span", { className: "hg-gap" }),
        Button("undo", "undo", "Take back the last decision"),
        Button("n", "next", "Next picture, or the next photo to review"),
        h("button", { title: "Go on to the next picture after a decision", "data-cy": "hgdpo-move",
          onClick: () => ((s.moveOn = !s.moveOn), draw()) }, s.moveOn ? "moves on" : "stays"),
        h("button", { title: "Whose scores sort and pair", "data-cy": "hgdpo-scorer",
          onClick: () => openForm("switch_scorer") }, "by " + ((s.about && s.about.scorer) || "…")),
        h("button", { title: "What is reviewed first", "data-cy": "hgdpo-order",
          onClick: () => openForm("switch_order") }, ORDERS[s.about && s.about.order] || "…"),
        h("button", { title: "All keys", "data-cy": "hgdpo-help-button", onClick: () => ((s.help = !s.help), draw()) },
          h("b", null, "?"), " keys")));
  }

  // what tiles show in a view, so that the reason to look is on them
  const CHIPS = (view) => {
    const stage = /^pairs: (\w+)$/.exec(view || "");
    if (stage && stage[1] === "local") return ["roles", "scored_by", "redrawn_part", "masks"];
    if (stage) return ["roles", stage[1], "scored_by", "flags"];
    if (view === "disagreements") return ["disagrees", "roles", "decision"];
    const part = { "parts: hands": "hands", "parts: faces": "faces_seen", "parts: people": "people_seen" }[view];
    if (part) return ["flags", "scored_by", part];
    if (CAPTIONS.includes(view)) return ["caption_by", "caption_identity", "decision"];
    if (/^pool/.test(view || "")) return ["roles", "scored_by", "flags", "decision"];
    return ["decision", "flags", "people", "faces_seen", "redraw"];
  };

  // FiftyOne saves what is drawn a moment after it is drawn, and tells nobody
  const unsigned = [];
  async function takeBoxes(id) {
    await sleep(1500);
    // they wait for the name, and are nobody else's
    if (!S.reviewer) return unsigned.push(id), named();
    const a = await ask("take_boxes", { sample_ids: [id], reviewer: S.reviewer });
    if (a.said) toast(a.said, { ms: 3000 });
    if (a.refused) toast(a.refused, { bad: true });
  }

  const panelOf = (node, type) => {
    if (!node) return null;
    if (type.test(node.type || "")) return node.id;
    return (node.children || []).map((c) => panelOf(c, type)).find(Boolean) || null;
  };

  let mounts = 0;
  // Mounted beside the grid's count; tells the bar what is open and selected, and how to change it.
  function Mount() {
    useS();
    const fos = __fos__;
    const id = recoil.useRecoilValue(fos.nullableModalSampleId);
    const open = recoil.useRecoilValue(fos.modalSelector);
    const looker = recoil.useRecoilValue(fos.modalLooker);
    const selected = recoil.useRecoilValue(fos.selectedSamples);
    const view = recoil.useRecoilValue(fos.viewName);
    const annotating = (fos.useModalMode ? fos.useModalMode() : "") === "annotate";
    const dataset = recoil.useRecoilValue(fos.datasetName);
    const setRefresher = recoil.useSetRecoilState(fos.refresher);
    const setActive = recoil.useSetRecoilState(fos.activeFields({ modal: false }));
    const expand = fos.useSetExpandedSample();
    const update = fos.useUpdateSamples();
    const form = __foo__.usePromptOperatorInput();
    const select = fos.useSetSelected();
    // FiftyOne's own refresh draws the grid from what it fetched before, so that is declared stale first
    const refresh = () => {
      fos.getCurrentEnvironment().commitUpdate((store) => store.invalidateStore());
      setRefresher((n) => n + 1);
    };
    const [spaces] = fos.useSessionSpaces();
    const setSidebar = recoil.useSetRecoilState(fos.sidebarVisible(false));
    const setModalSidebar = recoil.useSetRecoilState(fos.sidebarVisible(true));
    // a cell of a notebook is narrow: the pictures get the room
    React.useEffect(() => {
      if (window.self !== window.top || window.innerWidth < 1000) setSidebar(false), setModalSidebar(false);
    }, []);
    S.progress = panelOf(spaces, /progress$/);
    Object.assign(S, { modal: id, open, looker, view, selected: [...(selected.keys ? selected.keys() : selected)] });
    Object.assign(S.app, { expand, update, form, select, refresh });
    React.useEffect(() => {
      mounts += 1;
      // taken away for good: by a panel that covers the grid, or because the server is gone; else another stands already
      return () => {
        mounts -= 1;
        setTimeout(() => mounts || Object.assign(S, { modal: null, selected: [] }), 100);
        setTimeout(async () => mounts || (await isUp()) || toast(DOWN, { bad: true }), 1000);
      };
    }, []);
    React.useEffect(() => begin(), [dataset]);
    React.useEffect(() => {
      if (id === null && S.stale) {
        S.stale = false;
        S.app.refresh();
      }
      if (id === null) S.trail = [];
      if (id !== null && !S.isOpen) keepOrder(id);
      S.isOpen = id !== null;
      draw();
      if (id !== null && CAPTIONS.includes(S.view)) ready(id).then(draw);
    }, [id]);
    // a picture that boxes were drawn on is left, by another picture, by closing it, or for looking
    React.useEffect(() => {
      S.annotating = annotating;
      draw();
      if (annotating && id !== null) return () => void takeBoxes(id);
    }, [annotating, id]);
    React.useEffect(() => setActive(CHIPS(view)), [view]);
    React.useEffect(() => ((S.selectAt = S.selected.length ? Date.now() : 0), draw()), [selected]);
    const sentence = (S.about && S.about.views[view]) || "";
    return h(React.Fragment, null,
      h("span", { style: { fontSize: 13, opacity: .8, padding: "0 8px", whiteSpace: "nowrap", overflow: "hidden",
        textOverflow: "ellipsis" }, "data-cy": "hgdpo-view", title: sentence }, sentence),
      // for tests and tools: which sample the keys act on, and whether they wait
      h("span", { "data-cy": "hgdpo-keys", "data-sample": id || undefined,
        "data-waiting": S.busy || S.panelKeys.length ? "" : undefined, style: { display: "none" } }));
  }

  // Reads the workspace for the bar. Gives what stops that.
  function begin() {
    let now = true;
    showBar();
    ask("about", { reviewer: S.reviewer }).then((a) => {
      if (!now || a.refused) return a.refused && toast(a.refused, { bad: true });
      S.about = a;
      S.counts = a.counts;
      if (!S.reviewer && a.named) S.reviewer = a.reviewer;
      if (!S.reviewer) S.asking = true;
      draw();
    });
    return () => (now = false);
  }

  // The bar has a root of its own: it stays where a panel covers the grid, and where the App loses its server.
  let bar = null;
  function showBar() {
    if (bar) return;
    bar = ReactDOM.createRoot(document.body.appendChild(document.createElement("div")));
    bar.render(h(Bar));
  }
  localStorage.setItem("fiftyone-enterprise-tooltip-seen", "true");

  __fop__.registerComponent({
    name: "HgdpoBar",
    label: "HgdpoBar",
    component: () => null,
    type: __fop__.PluginComponentType.SampleRenderer,
    activator: () => true,
    sampleRendererOptions: {
      supports: () => false,
      grid: { enabled: true, slots: { [__fop__.SAMPLE_RENDERER_GRID_SLOT.HEADER_AFTER_RESOURCE_COUNT]: Mount } },
    },
  });
  window.hgdpo = { S, ask, begin, send, inTurn, toast, draw, useS, press, named, h, flagOf, whichPart, sleep };

  // the panels lie beside this file; FiftyOne loads one bundle per plugin
  const panels = document.createElement("script");
  panels.src = here.replace(/keys\.js/, "panels.js");
  document.head.append(panels);
})();
