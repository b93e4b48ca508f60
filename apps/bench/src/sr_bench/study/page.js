"use strict";
const by = (id) => document.getElementById(id);
const pictures = by("pictures");
const ZOOM = 3;
let state = null;
let shownAt = 0;
let locked = false; // from a request until all pictures of its reply are on the screen
let touch = false;
let aspect = 1;

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const reply = await fetch(path, { credentials: "same-origin", ...options });
  if (!reply.ok) throw new Error(`status ${reply.status}`);
  return reply.json();
}

// One at a time: what is on the screen belongs to the newest reply.
async function turn(path, body) {
  if (locked) return;
  locked = true;
  pictures.classList.add("waiting");
  try {
    state = await ask(path, body);
    by("problem").hidden = true;
    await show();
    locked = false;
  } catch (error) {
    by("problem").textContent = "That did not work. Your earlier answers are stored; reload the page to go on.";
    by("problem").hidden = false;
  }
}

async function show() {
  const part = state === null ? "start" : state.question === null ? "end" : "ask";
  for (const id of ["start", "ask", "end"]) by(id).hidden = id !== part;
  for (const button of document.querySelectorAll(".undo")) button.disabled = !state || !state.undo;
  if (part === "end") document.querySelector("#end h1").focus();
  if (part === "start") by("begin").focus();
  if (part === "ask") await showQuestion();
}

async function showQuestion() {
  by("count").textContent = `${state.position + 1} / ${state.total}`;
  by("done").max = state.total;
  by("done").value = state.position;
  const { references, candidates } = state.question;
  const figures = [...references.map((one) => figure(one, false)), ...candidates.map((one) => figure(one, true))];
  const images = figures.map((one) => one.querySelector("img"));
  await Promise.all(images.map((image) => image.decode()));
  const large = images[images.length - 1];
  aspect = large.naturalWidth / large.naturalHeight;
  pictures.replaceChildren(...figures);
  zoom(1);
  fit();
  pictures.classList.remove("waiting");
  shownAt = performance.now();
  for (const token of state.next) new Image().src = `picture/${token}`;
}

function figure(one, candidate) {
  const box = document.createElement("figure");
  const frame = document.createElement("div");
  const image = document.createElement("img");
  frame.className = "frame";
  image.src = `picture/${one.token}`;
  image.alt = candidate ? `Candidate ${one.name}` : one.name;
  image.draggable = false;
  frame.append(image);
  box.append(frame);
  if (candidate) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = one.name;
    button.setAttribute("aria-label", `Choose ${one.name}`);
    button.onclick = () => answer(one.token);
    box.className = "candidate";
    box.append(button);
  } else {
    const caption = document.createElement("figcaption");
    caption.textContent = one.name;
    box.append(caption);
  }
  frame.onpointerdown = (event) => { touch = event.pointerType === "touch"; };
  frame.onpointermove = (event) => { if (event.pointerType !== "touch") zoomAt(frame, event); };
  frame.onpointerleave = (event) => { if (event.pointerType !== "touch") zoom(1); };
  frame.onclick = (event) => {
    if (!touch) return candidate && answer(one.token);
    return zoomed() ? zoom(1) : zoomAt(frame, event);
  };
  return box;
}

function zoomed() { return pictures.style.getPropertyValue("--zoom") > 1; }

function zoom(factor, x = 50, y = 50) {
  pictures.style.setProperty("--zoom", factor);
  pictures.style.setProperty("--x", `${x}%`);
  pictures.style.setProperty("--y", `${y}%`);
}

function zoomAt(frame, event) {
  const place = frame.getBoundingClientRect();
  zoom(ZOOM, 100 * (event.clientX - place.left) / place.width, 100 * (event.clientY - place.top) / place.height);
}

function moveZoom(x, y) {
  const at = (name) => parseFloat(pictures.style.getPropertyValue(name));
  const inside = (value) => Math.min(Math.max(value, 0), 100);
  zoom(ZOOM, inside(at("--x") + x), inside(at("--y") + y));
}

// As many columns as make the pictures largest while all of them fit into the window; two at least.
function fit() {
  if (by("ask").hidden || !pictures.children.length) return;
  const count = pictures.children.length;
  const above = state.question.references.length; // in rows of their own, unless all fit into one
  const gap = parseFloat(getComputedStyle(pictures).columnGap);
  const caption = pictures.children[0].offsetHeight - pictures.querySelector(".frame").offsetHeight;
  const others = by("ask").offsetHeight - pictures.offsetHeight + 24;
  let best = { side: 0 };
  for (let columns = Math.min(2, count); columns <= count; columns += 1) {
    const rows = columns === count ? 1 : Math.ceil(above / columns) + Math.ceil((count - above) / columns);
    const wide = (pictures.clientWidth - gap * (columns - 1)) / columns;
    const high = (window.innerHeight - others - gap * (rows - 1)) / rows - caption;
    const side = columns === 2 && wide < 300 ? wide : Math.min(wide, high * aspect);
    if (side > best.side) best = { side, columns };
  }
  const side = Math.floor(Math.max(best.side, Math.min(160, (pictures.clientWidth - gap) / 2)));
  pictures.children[above].style.gridColumnStart = best.columns === count ? "auto" : 1;
  pictures.style.gridTemplateColumns = `repeat(${best.columns || 2}, ${side}px)`;
  pictures.style.setProperty("--side", `${side}px`);
  pictures.style.setProperty("--height", `${Math.round(side / aspect)}px`);
}

// token: of the chosen picture; of the question: cannot decide
function answer(token) {
  turn("answer", { position: state.position, token, seconds: (performance.now() - shownAt) / 1000 });
}

function undo() {
  if (state && state.undo) turn("undo", { position: state.position - 1, token: state.undo });
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toUpperCase();
  if (key === "U" || key === "BACKSPACE") return undo();
  if (locked || !state || !state.question) return;
  const arrows = { ARROWLEFT: [-10, 0], ARROWRIGHT: [10, 0], ARROWUP: [0, -10], ARROWDOWN: [0, 10] };
  const chosen = state.question.candidates.find((one) => one.name === key);
  if (key === "0") answer(state.question.token);
  else if (chosen) answer(chosen.token);
  else if (key === "Z") zoom(zoomed() ? 1 : ZOOM);
  else if (arrows[key] && zoomed()) { event.preventDefault(); moveZoom(...arrows[key]); }
});
by("none").onclick = () => answer(state.question.token);
for (const button of document.querySelectorAll(".undo")) button.onclick = undo;
by("begin").onclick = () => turn("start", {});
addEventListener("resize", fit);
turn("state");
