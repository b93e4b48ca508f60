(() => {
  const reference = document.getElementById("reference");
  const references = [...document.querySelectorAll(".reference")];
  reference?.addEventListener("change", () => references.forEach((box, index) => (box.hidden = index !== Number(reference.value))));

  const boxes = [...document.querySelectorAll("input[data-metric]")];
  const values = (key) => document.querySelectorAll(`dl [data-metric="${CSS.escape(key)}"]`);
  const showValues = (box) => values(box.dataset.metric).forEach((line) => (line.hidden = !box.checked));
  for (const box of boxes) {
    box.addEventListener("change", () => showValues(box));
    showValues(box);
  }

  const zoom = document.getElementById("zoom");
  const size = document.getElementById("size");
  const limit = (value) => Math.min(1, Math.max(0, value));

  // A place is (u, v), 0 to 1 across and down the region, so it is the same in LR and in all methods.
  class Strip {
    constructor(node) {
      this.node = node;
      this.width = Number(node.dataset.width);
      this.height = Number(node.dataset.height);
      [this.u, this.v] = node.dataset.place.split(",").map(Number);
      this.cells = [...node.querySelectorAll(".cell")]
        .map((cell) => ({ image: cell.querySelector("img"), marker: cell.querySelector(".marker"), view: cell.querySelector(".window") }))
        .filter((cell) => cell.image);
      for (const cell of this.cells) this.listen(cell);
      node.addEventListener("keydown", (event) => this.key(event));
    }

    listen({ image, view }) {
      const frame = image.parentElement;
      frame.addEventListener("pointermove", (event) => {
        if (event.pointerType === "mouse" && !this.fixed) this.point(event, image);
      });
      frame.addEventListener("click", (event) => {
        const release = this.fixed && event.detail > 0 && this.near(event, image);
        this.point(event, image);
        this.fix(!release);
      });
      let last = null;
      view.addEventListener("pointerdown", (event) => {
        view.setPointerCapture(event.pointerId);
        last = event;
      });
      view.addEventListener("pointermove", (event) => {
        if (!view.hasPointerCapture(event.pointerId)) return;
        this.fix(true);
        const factor = Number(zoom.value);
        const moved = [event.clientX - last.clientX, event.clientY - last.clientY];
        last = event;
        this.move(this.u - moved[0] / (this.width * factor), this.v - moved[1] / (this.height * factor));
      });
    }

    place(event, image) {
      const box = image.getBoundingClientRect();
      return [limit((event.clientX - box.left) / box.width), limit((event.clientY - box.top) / box.height)];
    }

    point(event, image) {
      this.move(...this.place(event, image));
    }

    // Whether a click is on the place that is fixed: then it lets go, else it fixes the new place.
    near(event, image) {
      const [u, v] = this.place(event, image);
      const box = image.getBoundingClientRect();
      return Math.hypot((u - this.u) * box.width, (v - this.v) * box.height) < 12;
    }

    fix(on) {
      this.fixed = on;
      this.node.classList.toggle("fixed", on);
      this.node.parentElement.querySelector(".state").textContent = on ? "place fixed" : "";
    }

    key(event) {
      const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (direction) {
        const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(this.width, this.height) / 40));
        this.fix(true);
        this.move(this.u + (direction[0] * step) / this.width, this.v + (direction[1] * step) / this.height);
      } else if (event.key === "+" || event.key === "-") {
        const index = zoom.selectedIndex + (event.key === "+" ? 1 : -1);
        zoom.selectedIndex = Math.min(zoom.length - 1, Math.max(0, index));
        zoom.dispatchEvent(new Event("change"));
      } else if (event.key === "Escape") {
        this.fix(false);
      } else {
        return;
      }
      event.preventDefault();
    }

    move(u, v) {
      [this.u, this.v] = [limit(u), limit(v)];
      this.update();
    }

    update() {
      if (!this.loaded) return;
      const factor = Number(zoom.value);
      const full = [this.width * factor, this.height * factor];
      for (const { marker, view } of this.cells) {
        const box = [view.clientWidth, view.clientHeight];
        const offset = [this.u, this.v].map((place, axis) =>
          full[axis] <= box[axis] ? (box[axis] - full[axis]) / 2 : Math.min(0, Math.max(box[axis] - full[axis], box[axis] / 2 - place * full[axis])));
        view.style.backgroundSize = `${full[0]}px ${full[1]}px`;
        view.style.backgroundPosition = `${offset[0]}px ${offset[1]}px`;
        const percent = (number, axis) => `${(100 * number) / full[axis]}%`;
        marker.style.left = percent(Math.max(0, -offset[0]), 0);
        marker.style.top = percent(Math.max(0, -offset[1]), 1);
        marker.style.width = percent(Math.min(box[0], full[0]), 0);
        marker.style.height = percent(Math.min(box[1], full[1]), 1);
      }
    }

    // The windows show the pictures as backgrounds, set when the strip comes near: decoding all at once would take long.
    load() {
      if (!this.loaded) for (const { image, view } of this.cells) view.style.backgroundImage = `url("${image.src}")`;
      this.loaded = true;
      this.update();
    }
  }

  const strips = new Map([...document.querySelectorAll(".strip")].map((node) => [node, new Strip(node)]));
  const all = (what) => strips.forEach(what);
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) strips.get(entry.target).load();
  }, { rootMargin: "600px" });
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => strips.get(entry.target).update()));
  all((strip, node) => {
    near.observe(node);
    sizes.observe(node);
  });
  zoom?.addEventListener("change", () => all((strip) => strip.update()));
  size?.addEventListener("change", () => {
    document.documentElement.style.setProperty("--cell", `${size.value}px`);
    all((strip) => strip.update());
  });
  window.addEventListener("beforeprint", () => all((strip) => strip.load()));
})();
