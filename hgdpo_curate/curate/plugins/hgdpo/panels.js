// Two panels: a pair at full size, and the images of one prompt from best to worst. They decide by the bar's operators.
(function () {
  const { S, ask, begin, send, inTurn, toast, draw, useS, named, h, flagOf, whichPart, sleep } = window.hgdpo;
  const STAGES = ["easy", "normal", "hard", "local"];
  const STEPS = { ArrowRight: 1, n: 1, ArrowLeft: -1 };
  const media = (image) => __fos__.getSampleSrc(image.filepath);

  const style = document.createElement("style");
  style.textContent = `
    .hg-panel { height: 100%; box-sizing: border-box; padding-bottom: 10px; display: flex; flex-direction: column;
      background: #16191d; color: #e6e9ee; outline: none;
      font: 14px/1.4 system-ui, sans-serif; overflow: hidden; }
    .hg-head { display: flex; gap: 10px; align-items: center; padding: 6px 12px; flex-wrap: wrap; }
    .hg-head button { font: inherit; color: inherit; background: #323a45; border: 0; border-radius: 4px;
      padding: 3px 8px; cursor: pointer; } .hg-head button.on { background: #3478c9; }
    .hg-caption { padding: 0 12px 6px; max-height: 5.6em; overflow: auto; }
    .hg-two { flex: 1; min-height: 0; display: flex; gap: 8px; padding: 0 8px; }
    .hg-side { flex: 1; min-width: 0; display: flex; flex-direction: column; }
    .hg-look { flex: 1; min-height: 0; overflow: hidden; position: relative; border: 4px solid #5d7390;
      border-radius: 4px; cursor: zoom-in; } .hg-look.winner, .hg-tile.winner { border-color: #2a9d5c; }
    .hg-look.loser, .hg-tile.loser { border-color: #d97b29; } .hg-look.marked { box-shadow: 0 0 0 3px #ffd166; }
    .hg-look img { width: 100%; height: 100%; object-fit: contain; transform-origin: 0 0; image-rendering: auto;
      user-select: none; }
    .hg-words { padding: 4px 2px; height: 5.8em; overflow: auto; } .hg-words em { font-style: normal; color: #ff8fab; }
    .hg-words small { color: #aab3c0; } .hg-crops { display: flex; gap: 4px; height: 84px; overflow-x: auto; }
    .hg-crops div { flex: none; width: 84px; height: 84px; background-repeat: no-repeat; border-radius: 3px; }
    .hg-crops .hg-anew { outline: 2px solid #ffd166; outline-offset: -2px; }
    .hg-pool { flex: 1; min-height: 0; overflow: auto; display: grid; gap: 8px; padding: 8px 12px; align-content: start;
      grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); }
    .hg-tile { border: 4px solid #2b313a; border-radius: 4px; cursor: pointer; background: #0e1013; }
    .hg-tile.on { box-shadow: 0 0 0 3px #ffd166; } .hg-tile img { width: 100%; display: block; }
    .hg-tile .hg-words { padding: 3px 6px; height: 4.4em; }
    .hg-gone { display: flex; height: 100%; min-height: 120px; align-items: center; justify-content: center;
      text-align: center; color: #ff8fab; padding: 10px; }`;
  document.head.append(style);

  // --- what is said of an image
  const words = (name) => name.replaceAll("_", " ");
  const scores = (image) =>
    Object.entries(image.scores).map(([who, s]) => `${who} ${Number(s).toPrecision(4)}`).join("   ") || "no score";

  function Words({ image, role }) {
    const flags = image.flags.map((f, n) => h("div", { key: n }, h("em", null, words(f.flag)),
      f.part ? ` (${[f.side, f.part].filter(Boolean).join(" ")})` : "", h("small", null, ` ${f.status}`,
        f.reason ? `: ${f.reason}` : "")));
    const said = image.decision ? `${image.decision} by ${image.reviewer}, ${image.decided_at}` : "";
    return h("div", { className: "hg-words" }, h("b", null, role || ""), role ? "   " : "", scores(image),
      said && h("div", null, said), flags);
  }

  function Picture({ image, style }) {
    const [gone, setGone] = React.useState(false);
    React.useEffect(() => setGone(false), [image.id]);
    const sentence = `The file ${image.filepath} cannot be shown; was it moved or deleted?`;
    if (gone) return h("div", { className: "hg-gone" }, sentence);
    return h("img", { src: media(image), style, draggable: false, alt: image.prompt || "",
      onError: () => setGone(true) });
  }

  function Crops({ image }) {
    if (!image.boxes.length) return null;
    const crop = ({ label, anew, box: [x, y, w, bh] }, n) => {
      // a square around the box, in pixels of the picture
      const side = Math.max(w * image.width, bh * image.height) * 1.4, k = 84 / side;
      const left = (x + w / 2) * image.width - side / 2, top = (y + bh / 2) * image.height - side / 2;
      return h("div", { key: n, title: label, className: anew ? "hg-anew" : "", style: { backgroundImage: `url("${media(image)}")`,
        backgroundSize: `${image.width * k}px ${image.height * k}px`,
        backgroundPosition: `${-left * k}px ${-top * k}px` } });
    };
    return h("div", { className: "hg-crops", "data-cy": "hgdpo-crops" }, image.boxes.slice(0, 12).map(crop));
  }

  // --- what both panels do: ask, show an error as a sentence, take the keys
  function useAnswer(operator, params) {
    const [answer, set] = React.useState(null), asked = React.useRef(0);
    const fetchIt = React.useCallback(async (more = {}) => {
      const turn = ++asked.current;
      const a = await ask(operator, { ...params.current, ...more });
      if (turn === asked.current) set(a);
      return a;
    }, [operator]);
    // again where another scorer was chosen
    React.useEffect(() => void fetchIt(), [fetchIt, S.about && S.about.scorer]);
    return [answer, fetchIt];
  }

  // Keys wait for what the ones before them changed to be on the screen: none acts on a picture that is about to go.
  const twoFrames = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const frame = () => Promise.race([sleep(60), twoFrames()]);
  let turn = Promise.resolve();
  function usePanelKeys(takes, act) {
    const mine = React.useRef({});
    Object.assign(mine.current, { takes, act });
    mine.current.key = (k, shift) => {
      const item = { key: k, shift }, now = () => mine.current.act(k, item);
      S.panelKeys.push((S.last = item));
      turn = turn.then(now).catch((e) => toast(`It was not done: ${(e && e.message) || e}`, { bad: true })).then(frame)
        .then(() => ((item.closed = true), (S.panelKeys = S.panelKeys.filter((i) => i !== item)), draw()));
    };
    React.useEffect(() => {
      S.panel = mine.current;
      S.panelAt = Date.now();
      if (!S.about) begin();
      return () => {
        if (S.panel === mine.current) S.panel = null;
      };
    }, []);
  }

  const decideOn = async (image, item, more = {}) => {
    const key = item.key, flag = flagOf(key);
    const name = { a: "approve", d: "reject", u: "duplicate", e: "undecide", 0: "clear" }[key];
    const flagIt = async () =>
      send("flag", { sample_ids: [image.id], flag: flag.name, ...(await whichPart(item, flag)), ...more });
    if (flag) return inTurn(flagIt);
    return name && inTurn(() => send(name, { sample_ids: [image.id], ...more }));
  };

  // --- a pair
  function Pairs() {
    useS();
    const first = (/^pairs: (\w+)$/.exec(S.view || "") || [])[1] || "easy";
    const params = React.useRef({ stage: first, place: 0, sample: S.selected[0] });
    const [pair, fetchIt] = useAnswer("pair_shown", params);
    const [mark, setMark] = React.useState("winner");
    const [zoom, setZoom] = React.useState({ k: 1, x: 0, y: 0 });
    const drag = React.useRef(null);
    const go = (change) => {
      params.current = { ...params.current, sample: null, ...change };
      setZoom({ k: 1, x: 0, y: 0 });
      return fetchIt();
    };
    const again = () => fetchIt({ sample: null });
    const takes = (k) => pair && pair.pairs && (STEPS[k] || "wdlr0".includes(k) || flagOf(k) || k === "undo");
    const act = async (k, item) => {
      if (STEPS[k]) return go({ place: Math.max(0, pair.place + STEPS[k]) });
      if (k === "l" || k === "r") return setMark(k === "l" ? "winner" : "loser");
      if (!named()) return;
      // a photo may win several local pairs
      const of = { sample_ids: [pair[pair.stage === "local" ? "loser" : "winner"].id], stage: pair.stage };
      if (k === "undo") await inTurn(() => send("undo", {}));
      else if (k === "w") await inTurn(() => send("swap", of));
      else if (k === "d") await inTurn(() => send("reject_pair", of));
      else await decideOn(pair[mark], item);
      return again();
    };
    usePanelKeys(takes, act);
    const wheel = (e) => {
      const box = e.currentTarget.getBoundingClientRect(), px = e.clientX - box.left, py = e.clientY - box.top;
      setZoom((z) => {
        const k = Math.min(20, Math.max(1, z.k * (e.deltaY < 0 ? 1.25 : 0.8))), f = k / z.k;
        return k === 1 ? { k: 1, x: 0, y: 0 } : { k, x: px - (px - z.x) * f, y: py - (py - z.y) * f };
      });
    };
    const move = (e) => drag.current && setZoom((z) => ({ ...z, x: z.x + e.movementX, y: z.y + e.movementY }));
    const side = (role, letter) => h("div", { className: "hg-side", key: role },
      h("div", { className: `hg-look ${role}${mark === role ? " marked" : ""}`, "data-cy": `hgdpo-${role}`,
        "data-id": pair[role].id,
        onWheel: wheel, onMouseDown: () => ((drag.current = true), setMark(role)), onMouseMove: move,
        onMouseUp: () => (drag.current = null), onMouseLeave: () => (drag.current = null) },
        h(Picture, { image: pair[role], style: { transform: `translate(${zoom.x}px,${zoom.y}px) scale(${zoom.k})` } })),
      h(Words, { image: pair[role], role: `${role} (${letter})` + (pair[role].redrawn_part && pair.stage === "local"
        ? `, ${pair[role].redrawn_part} generated anew` : "") }), h(Crops, { image: pair[role] }));
    const stages = STAGES.map((s) => h("button", { key: s, className: s === params.current.stage ? "on" : "",
      onClick: () => go({ stage: s, place: 0 }) }, s));
    if (!pair) return h("div", { className: "hg-panel" }, h("div", { className: "hg-gone" }, "…"));
    const nothing = pair.refused || (!pair.pairs && `There are no pairs of the ${pair.stage} stage.`);
    return h("div", { className: "hg-panel", onMouseDown: () => (S.panelAt = Date.now()), "data-cy": "hgdpo-pair" },
      h("div", { className: "hg-head" }, stages, !nothing && h("span", null, `pair ${pair.place + 1} of ${pair.pairs}`),
        h("span", { style: { opacity: .7 } },
          (pair.stage === "local" ? "" : "w swap · ") +
            "d reject · l r which side flags go to · 1–9 flag · ← → · wheel zooms both")),
      nothing ? h("div", { className: "hg-gone" }, nothing) : h(React.Fragment, null,
        h("div", { className: "hg-caption" }, pair.prompt),
        h("div", { className: "hg-two" }, side("winner", "l"), side("loser", "r"))));
  }

  // --- the images of a prompt
  function Pool() {
    useS();
    const params = React.useRef({ place: 0, sample: S.selected[0] });
    const [pool, fetchIt] = useAnswer("pool_shown", params);
    const [at, setAt] = React.useState(0);
    const go = (place) => {
      params.current = { place, sample: null };
      setAt(0);
      return fetchIt();
    };
    const takes = (k) => pool && pool.prompts && (STEPS[k] || "adue0w".includes(k) || flagOf(k) || k === "undo");
    // within the prompt; at its end the next one
    const step = (to) => {
      if (to < 0) return pool.place > 0 && go(pool.place - 1);
      if (to < pool.images.length) return setAt(to);
      return pool.place + 1 < pool.prompts ? go(pool.place + 1) : toast("The last prompt.", { ms: 2500 });
    };
    const act = async (k, item) => {
      if (STEPS[k]) return step(at + STEPS[k]);
      if (!named()) return;
      const images = pool.images, decides = k !== "undo" && k !== "w";
      const answer = k === "undo" ? await inTurn(() => send("undo", {}))
        : k === "w" ? await inTurn(() => send("swap", { sample_ids: [images[at].id], stage: "easy" }))
        : await decideOn(images[at], item);
      await fetchIt({ place: pool.place, sample: null });
      if (decides && answer && !answer.refused && S.moveOn && !item.shift) await step(at + 1);
    };
    usePanelKeys(takes, act);
    if (!pool) return h("div", { className: "hg-panel" }, h("div", { className: "hg-gone" }, "…"));
    const nothing = pool.refused || (!pool.prompts && "There is no image pool yet.");
    const tile = (image, n) => h("div", { key: image.id,
      className: `hg-tile ${image.easy || ""}${n === at ? " on" : ""}`,
      "data-cy": "hgdpo-tile", "data-id": image.id, onClick: () => n >= 0 && setAt(n) },
      h(Picture, { image }), h(Words, { image, role: n < 0 ? "the photo" : `${image.rank + 1}. ${image.easy || ""}` }));
    return h("div", { className: "hg-panel", onMouseDown: () => (S.panelAt = Date.now()), "data-cy": "hgdpo-pool" },
      h("div", { className: "hg-head" }, !nothing && h("span", null, `prompt ${pool.place + 1} of ${pool.prompts}`),
        h("span", { style: { opacity: .7 } },
          "1–9 flag · d reject · 0 clear · w let the loser win · ← → within the prompt, then the next")),
      nothing ? h("div", { className: "hg-gone" }, nothing) : h(React.Fragment, null,
        h("div", { className: "hg-caption" }, pool.prompt),
        h("div", { className: "hg-pool" }, pool.images.map(tile), pool.photo && tile(pool.photo, -1))));
  }

  const panel = (name, label, component, help) => __fop__.registerComponent({
    name, label, component, type: __fop__.PluginComponentType.Panel, activator: () => true,
    panelOptions: { surfaces: "grid", allowDuplicates: false, helpMarkdown: help },
  });
  panel("HgdpoPairs", "Pairs, side by side", Pairs, "Winner and loser at full size. See ? for the keys.");
  panel("HgdpoPool", "Pool of a prompt", Pool, "The images of one prompt, best first. See ? for the keys.");
})();
