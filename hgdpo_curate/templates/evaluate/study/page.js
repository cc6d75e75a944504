const $ = id => document.getElementById(id);
const sides = ["left", "right"];
const faults = new Set();          // sides whose body is marked as faulty
let study, shown, began;           // state from the server; number of the pair; time it was shown
let rater = new URLSearchParams(location.search).get("rater") || "";
let busy = false;                  // an answer is being sent

const query = () => "?token=" + TOKEN + (rater ? "&rater=" + encodeURIComponent(rater) : "");
const imageOf = (n, side) => "/image/" + n + "/" + side + query();

async function start() {
  const state = await (await fetch("/state" + query())).json();
  $("who").style.display = state.ask ? "block" : "none";
  if (state.ask) {
    $("name").value = rater || state.suggested;
    $("why").textContent = state.why;
    $("name").focus();
    $("name").select();
    return;
  }
  study = state;
  show(study.next);
}

// the address keeps the name, so that a reload does not ask again
$("who").onsubmit = e => {
  e.preventDefault();
  rater = $("name").value.trim();
  if (!rater) return;
  history.replaceState(null, "", "/" + query());
  start();
};

function show(n) {
  shown = n;
  faults.clear();
  markFaults();
  $("bar").firstChild.style.width = 100 * study.answered.length / study.total + "%";
  const done = n >= study.total;
  $("work").style.display = done ? "none" : "block";
  $("done").style.display = done ? "block" : "none";
  if (done) {
    $("done").textContent = study.rater + ": all " + study.total + " pairs are answered. Thank you! You can close this page.";
    return;
  }
  $("question").textContent = study.question;
  $("prompt").textContent = study.prompts[n];
  for (const side of sides) {
    const image = $(side);
    image.onload = () => image.className = image.naturalHeight < 300 ? "small" : "";
    image.src = imageOf(n, side);
  }
  // load the next pair ahead
  if (n + 1 < study.total) for (const side of sides) new Image().src = imageOf(n + 1, side);
  $("progress").textContent = study.rater + ": " + study.answered.length + " of " + study.total + " answered";
  $("note").textContent = (n + 1) + " of " + study.total + (n ? " · Backspace: back one" : "")
    + (study.anatomy ? " · 1 / 2: this body is faulty" : "");
  began = performance.now();
}

function markFaults() {
  $("fl").className = faults.has("left") ? "faulty" : "";
  $("fr").className = faults.has("right") ? "faulty" : "";
}

function toggleFault(side) {
  if (!study.anatomy) return;
  if (!faults.delete(side)) faults.add(side);
  markFaults();
}

// the next pair without an answer, after the current one, then from the first
function following() {
  for (let n = shown + 1; n < study.total; n++) if (!study.answered.includes(n)) return n;
  for (let n = 0; n < study.total; n++) if (!study.answered.includes(n)) return n;
  return study.total;
}

async function answer(choice) {
  if (busy || shown >= study.total) return;
  busy = true;
  document.activeElement.blur();
  const seconds = (performance.now() - began) / 1000;
  try {
    const reply = await fetch("/answer", {
      method: "POST",
      headers: {"Content-Type": "application/json"},
      body: JSON.stringify({token: TOKEN, rater: rater, n: shown, choice: choice, faults: [...faults], seconds: seconds}),
    });
    if (!reply.ok) throw 0;
    if (!study.answered.includes(shown)) study.answered.push(shown);
    show(following());
  } catch (e) {
    $("note").textContent = "The answer could not be saved: is hgdpo study still running? "
      + "Start it again, then reload this page.";
  } finally {
    busy = false;
  }
}

const keys = {
  "ArrowLeft": () => answer("left"),
  "ArrowRight": () => answer("right"),
  " ": () => answer("tie"),
  "Backspace": () => shown && show(shown - 1),
  "1": () => toggleFault("left"),
  "2": () => toggleFault("right"),
};

document.onkeydown = e => {
  if (e.repeat || e.ctrlKey || e.altKey || e.metaKey || !study || !(e.key in keys)) return;
  e.preventDefault();
  keys[e.key]();
};
$("bl").onclick = $("left").onclick = () => answer("left");
$("br").onclick = $("right").onclick = () => answer("right");
$("bt").onclick = () => answer("tie");
start();
