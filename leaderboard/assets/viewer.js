/* Slice viewer: three linked planes over the volumes in AUTOPET_CASE (see leaderboard/viewer.py). Arrays run head to
   foot, front to back, patient's right to left. */
"use strict";
(() => {
  const root = document.getElementById("viewer");
  if (!root) return;
  const status = root.querySelector("[data-status]");
  const COLOURS = { missed: [0, 114, 178], false: [213, 94, 0], both: [0, 158, 115] };
  // plane: the axis it cuts, and the axes of its rows and columns
  const PLANES = { axial: [0, 1, 2], coronal: [1, 0, 2], sagittal: [2, 0, 1] };

  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }
  async function inflate(text) {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  function unpackBits(packed, count) {
    const out = new Uint8Array(count);
    for (let i = 0; i < count; i++) out[i] = (packed[i >> 3] >> (7 - (i & 7))) & 1;
    return out;
  }

  function control(name) { return root.querySelector(`[data-control="${name}"]`); }

  async function start() {
    const data = window.AUTOPET_CASE;
    if (!data) throw new Error("the volumes of this case are missing beside the page");
    const [nz, ny, nx] = data.shape, count = nz * ny * nx, strides = [ny * nx, nx, 1];
    const suv = data.suv === null ? null : await inflate(data.suv);
    const truth = unpackBits(await inflate(data.ground_truth), count);
    const masks = new Map();
    const empty = new Uint8Array(count);
    const state = { at: [nz >> 1, ny >> 1, nx >> 1], mask: empty };
    const planes = Object.keys(PLANES).map(makePlane);

    async function choose(index) {
      if (!masks.has(index)) masks.set(index, unpackBits(await inflate(data.predictions[index].mask), count));
      state.mask = masks.get(index);
      draw();
    }

    function makePlane(name) {
      const [cut, row, column] = PLANES[name];
      const figure = root.querySelector(`[data-plane="${name}"]`);
      const canvas = figure.querySelector("canvas"), slider = figure.querySelector("input");
      const rows = data.shape[row], columns = data.shape[column];
      const wide = columns * data.spacing_mm[column], tall = rows * data.spacing_mm[row];
      figure.style.setProperty("--ratio", wide / tall);
      figure.style.setProperty("--wide", wide);
      slider.max = data.shape[cut] - 1;
      const plane = { name, cut, row, column, rows, columns, wide, tall, canvas, slider, figure,
        image: new ImageData(columns, rows), overlay: new ImageData(columns, rows), layer: document.createElement("canvas") };
      plane.layer.width = columns;
      plane.layer.height = rows;
      slider.addEventListener("input", () => move(cut, Number(slider.value)));
      canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        move(cut, state.at[cut] + Math.sign(event.deltaY));
      }, { passive: false });
      canvas.addEventListener("keydown", (event) => onKey(event, plane));
      const point = (event) => {
        const box = canvas.getBoundingClientRect();
        state.at[row] = inside(Math.floor((event.clientY - box.top) / box.height * rows), row);
        move(column, Math.floor((event.clientX - box.left) / box.width * columns));
      };
      canvas.addEventListener("pointerdown", (event) => { if (event.button === 0) point(event); });
      canvas.addEventListener("pointermove", (event) => { if (event.buttons & 1 && event.pointerType === "mouse") point(event); });
      return plane;
    }

    function onKey(event, plane) {
      const steps = { ArrowUp: -1, ArrowDown: 1, ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
      let target = null;
      if (event.key in steps) target = state.at[plane.cut] + steps[event.key];
      if (event.key === "Home") target = 0;
      if (event.key === "End") target = data.shape[plane.cut] - 1;
      if (target === null || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      move(plane.cut, target);
    }

    function inside(value, axis) { return Math.min(Math.max(value, 0), data.shape[axis] - 1); }
    function move(axis, value) { state.at[axis] = inside(value, axis); draw(); }

    function paint(plane) {
      const { image, overlay, cut, row, column, rows, columns } = plane;
      const showTruth = control("truth").checked, showGuess = control("prediction").checked;
      const errors = control("errors").checked, alpha = Math.round(control("opacity").value * 2.55);
      const black = control("window").value / data.suv_window * 255;
      for (let r = 0, p = 0; r < rows; r++) {
        let v = state.at[cut] * strides[cut] + r * strides[row];
        for (let c = 0; c < columns; c++, p += 4, v += strides[column]) {
          const grey = suv ? 255 - Math.min(suv[v] / black, 1) * 255 : 255;
          image.data[p] = image.data[p + 1] = image.data[p + 2] = grey;
          image.data[p + 3] = 255;
          const t = truth[v], g = state.mask[v];
          let colour = null;
          if (t && g) colour = (showTruth || showGuess) && !errors ? COLOURS.both : null;
          else if (t) colour = showTruth ? COLOURS.missed : null;
          else if (g) colour = showGuess ? COLOURS.false : null;
          overlay.data[p + 3] = colour ? alpha : 0;
          if (colour) for (let k = 0; k < 3; k++) overlay.data[p + k] = colour[k];
        }
      }
    }

    function drawPlane(plane) {
      const { canvas, layer, row, column, rows, columns } = plane;
      const scale = window.devicePixelRatio || 1;
      const width = Math.max(1, Math.round(canvas.clientWidth * scale)), height = Math.max(1, Math.round(canvas.clientHeight * scale));
      if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
      paint(plane);
      const context = canvas.getContext("2d"), small = layer.getContext("2d");
      for (const [source, smooth] of [[plane.image, true], [plane.overlay, false]]) {
        small.putImageData(source, 0, 0);
        context.imageSmoothingEnabled = smooth;
        context.drawImage(layer, 0, 0, width, height);
      }
      if (control("cross").checked) {
        const x = (state.at[column] + 0.5) / columns * width, y = (state.at[row] + 0.5) / rows * height;
        context.strokeStyle = "rgba(90, 60, 150, 0.75)";
        context.lineWidth = scale;
        context.beginPath();
        context.moveTo(x, 0); context.lineTo(x, height);
        context.moveTo(0, y); context.lineTo(width, y);
        context.stroke();
      }
    }

    function draw() {
      for (const plane of planes) {
        const place = state.at[plane.cut], total = data.shape[plane.cut];
        plane.slider.value = place;
        plane.slider.setAttribute("aria-valuetext", `slice ${place + 1} of ${total}`);
        plane.figure.querySelector("[data-place]").textContent = `${place + 1} / ${total}`;
        drawPlane(plane);
      }
      control("window-text").textContent = `SUV ${control("window").value}`;
      const here = state.at[0] * strides[0] + state.at[1] * strides[1] + state.at[2];
      status.textContent = (suv ? `SUV ${suv[here] === 255 ? "≥ " : ""}${(suv[here] / 255 * data.suv_window).toFixed(1)}, ` : "") +
        (truth[here] ? (state.mask[here] ? "truth and prediction" : "truth only") : state.mask[here] ? "prediction only" : "background");
    }

    function goTo(x, y, z) {
      const [ox, oy, oz] = data.origin_mm, [sz, sy, sx] = data.spacing_mm;
      state.at = [(oz - z) / sz, (y - oy) / sy, (x - ox) / sx].map((value, axis) => inside(Math.round(value), axis));
      draw();
      root.scrollIntoView({ block: "start" });
      planes[0].canvas.focus({ preventScroll: true });
    }

    const select = control("algorithm");
    data.predictions.forEach((one, index) => select.add(new Option(one.name, index)));
    select.addEventListener("change", () => choose(Number(select.value)));
    for (const name of ["truth", "prediction", "errors", "cross", "opacity", "window"]) control(name).addEventListener("input", draw);
    for (const button of document.querySelectorAll("button[data-go]")) {
      button.hidden = false;
      button.addEventListener("click", () => goTo(...button.dataset.go.split(",").map(Number)));
    }
    control("window").max = data.suv_window;
    if (!suv) control("window").disabled = true;
    state.at = centre(truth) || state.at;
    root.classList.add("ready");
    if (data.predictions.length) await choose(0);
    new ResizeObserver(draw).observe(root);
    draw();

    function centre(mask) { // the slices with most of the lesions
      const sums = data.shape.map((n) => new Uint32Array(n));
      let any = false;
      for (let i = 0; i < count; i++) if (mask[i]) {
        any = true;
        sums[0][Math.floor(i / strides[0])]++; sums[1][Math.floor(i / nx) % ny]++; sums[2][i % nx]++;
      }
      return any ? sums.map((sum) => sum.indexOf(Math.max(...sum))) : null;
    }
  }

  start().catch((error) => { status.textContent = `The viewer cannot start: ${error.message}`; });
})();
