// One key per photo: while a sample is open, a key runs an operator on it and the next sample comes up.
(function () {
  const DECIDE = { a: ["approve"], d: ["reject"], u: ["duplicate"], 0: ["clear"] };
  const FLAGS = [
    "extra_limb", "missing_limb", "bad_hand", "bad_foot", "deformed_face",
    "extra_face", "bad_proportion", "impossible_pose", "merged_bodies",
  ];
  FLAGS.forEach((flag, i) => (DECIDE[String(i + 1)] = ["flag", { flag }]));
  const STAY = { w: ["swap"] }; // a swapped pair stays open, to be checked
  const FORM = "g";
  const LEGEND =
    "a approve, d reject, u duplicate, w swap the pair, g flag by a form, 0 clear flags, " +
    FLAGS.map((f, i) => `${i + 1} ${f.replace("_", " ")}`).join(", ");
  localStorage.setItem("fiftyone-enterprise-tooltip-seen", "true");

  const typing = (el) => el && (/^(INPUT|TEXTAREA|SELECT)$/.test(el.tagName) || el.isContentEditable);

  function Keys() {
    const id = recoil.useRecoilValue(__fos__.nullableModalSampleId);
    const openForm = __foo__.usePromptOperatorInput();
    const legend = React.useRef(null);
    React.useEffect(() => {
      if (!id) return;
      // for tests and tools: which sample the keys act on, and whether they wait for an operator
      const mark = legend.current.dataset;
      let waiting = false, here = true;
      const wait = (yes) => {
        waiting = yes;
        if (here) yes ? (mark.waiting = "") : delete mark.waiting;
      };
      const press = (e) => {
        const todo = DECIDE[e.key] || STAY[e.key];
        if (!(todo || e.key === FORM) || e.ctrlKey || e.metaKey || e.altKey || typing(document.activeElement)) return;
        e.preventDefault();
        // a second key press is ignored and does not reach the App's own keys
        e.stopImmediatePropagation();
        if (waiting || e.repeat) return;
        if (e.key === FORM) return openForm("@hgdpo/curate/flag");
        wait(true);
        // an operator that never answers does not block the keys for ever
        const late = setTimeout(() => wait(false), 30000);
        const [name, params] = todo;
        __foo__.executeOperator(`@hgdpo/curate/${name}`, { ...params, sample_id: id, by_key: true }, {
          callback: (result) => {
            clearTimeout(late);
            const going = DECIDE[e.key] && !(result && result.error);
            if (going) document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
            // keys wait until the next sample is there, and this listener gone; after the last sample there is none
            setTimeout(() => wait(false), going ? 2000 : 0);
          },
        });
      };
      window.addEventListener("keydown", press, true); // before the App's own keys
      mark.sample = id;
      return () => {
        here = false;
        delete mark.sample;
        delete mark.waiting;
        window.removeEventListener("keydown", press, true);
      };
    }, [id]);
    const style = { padding: "0 6px", cursor: "help" };
    return React.createElement("span", { ref: legend, title: LEGEND, "data-cy": "hgdpo-keys", style }, "⌨ keys");
  }

  // An operator that does nothing but give the listener a place beside the buttons of an open sample.
  class Place extends __foo__.Operator {
    get config() {
      return new __foo__.OperatorConfig({ name: "keys", label: "Review by keys", unlisted: true });
    }
    async execute() {}
    resolvePlacement() {
      const { Placement, Places, ComponentView } = __foo__.types;
      return new Placement(Places.SAMPLES_VIEWER_ACTIONS, new ComponentView("HgdpoKeys"));
    }
  }

  __fop__.registerComponent({
    name: "HgdpoKeys",
    label: "HgdpoKeys",
    component: Keys,
    type: __fop__.PluginComponentType.Component,
    activator: () => true,
  });
  __foo__.registerOperator(Place, "@hgdpo/curate");
})();
