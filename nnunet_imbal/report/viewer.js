"use strict";

// One viewer per article.case: grey image, marks of expert and model, a place to look at.
(() => {
  const style = getComputedStyle(document.documentElement);
  const COLOURS = ["", "--mark-missed", "--mark-false-alarm", "--mark-found"].map((name) => style.getPropertyValue(name));
  const CANVAS_SIZE = 960;
  const KEYS = { ArrowUp: 1, ArrowRight: 1, PageUp: 10, ArrowDown: -1, ArrowLeft: -1, PageDown: -10, Home: -Infinity, End: Infinity };

  function startViewer(article) {
    const find = (selector) => article.querySelector(selector);
    const data = JSON.parse(find("script").textContent);
    const depth = data.classes[0].runs.length;
    const canvas = find("canvas");
    const slider = find("input[type=range]");
    const output = find("output");
    const select = find("select");
    const scale = Math.max(1, Math.floor(CANVAS_SIZE / Math.max(data.columns, data.rows * data.aspect)));
    const stretch = scale * data.aspect;
    const state = { slice: 0, class: Number(article.dataset.firstClass), mode: "outline", zoom: 1, place: null };
    canvas.width = data.columns * scale;
    canvas.height = Math.round(data.rows * stretch);
    const pen = canvas.getContext("2d");

    function codesOf(runs) {
      const codes = new Uint8Array(data.rows * data.columns);
      for (let i = 0; i < runs.length; i += 4) {
        const start = runs[i] * data.columns + runs[i + 1];
        codes.fill(runs[i + 3], start, start + runs[i + 2]);
      }
      return codes;
    }

    function paintAreas(runs) {
      pen.globalAlpha = 0.55;
      for (let i = 0; i < runs.length; i += 4) {
        pen.fillStyle = COLOURS[runs[i + 3]];
        pen.fillRect(runs[i + 1] * scale, runs[i] * stretch, runs[i + 2] * scale, stretch);
      }
      pen.globalAlpha = 1;
    }

    function paintOutlines(runs) {
      const codes = codesOf(runs);
      const width = Math.max(1.5, canvas.width / 320) / state.zoom;
      const at = (row, column) => (row < 0 || column < 0 || row >= data.rows || column >= data.columns ? 0 : codes[row * data.columns + column]);
      codes.forEach((code, i) => {
        if (!code) return;
        const row = Math.floor(i / data.columns);
        const column = i % data.columns;
        const [left, top] = [column * scale, row * stretch];
        pen.fillStyle = COLOURS[code];
        if (at(row - 1, column) !== code) pen.fillRect(left, top, scale, width);
        if (at(row + 1, column) !== code) pen.fillRect(left, top + stretch - width, scale, width);
        if (at(row, column - 1) !== code) pen.fillRect(left, top, width, stretch);
        if (at(row, column + 1) !== code) pen.fillRect(left + scale - width, top, width, stretch);
      });
    }

    function paintPlace({ row, column, radius }) {
      for (const [colour, width] of [["#000", 5], ["#fff", 2.5]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = (width * canvas.width) / 640 / state.zoom;
        pen.beginPath();
        pen.arc(column * scale, row * stretch, radius * scale + canvas.width / 30 / state.zoom, 0, 2 * Math.PI);
        pen.stroke();
      }
    }

    // The patient's sides, at the edges of the canvas whatever part of the slice it shows.
    function paintLetters({ left, right, top, bottom }) {
      const [width, height, size] = [canvas.width, canvas.height, canvas.width / 26];
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.font = `600 ${size}px sans-serif`;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      pen.lineWidth = size / 5;
      pen.strokeStyle = "#000";
      pen.fillStyle = "#fff";
      for (const [letter, x, y] of [[left, size * 0.75, height / 2], [right, width - size * 0.75, height / 2], [top, width / 2, size * 0.75], [bottom, width / 2, height - size * 0.75]]) {
        pen.strokeText(letter, x, y);
        pen.fillText(letter, x, y);
      }
    }

    // Enlarge around the chosen place, else around the longest run of marks, without leaving the image.
    function view(runs) {
      let longest = -1;
      for (let i = 0; i < runs.length; i += 4) if (longest < 0 || runs[i + 2] > runs[longest + 2]) longest = i;
      const marked = longest < 0 ? { row: data.rows / 2, column: data.columns / 2 } : { row: runs[longest], column: runs[longest + 1] + runs[longest + 2] / 2 };
      const { row, column } = state.place || marked;
      const shift = (centre, size) => Math.min(0, Math.max(size * (1 - state.zoom), size / 2 - centre * state.zoom));
      return [state.zoom, 0, 0, state.zoom, shift(column * scale, canvas.width), shift(row * stretch, canvas.height)];
    }

    function paint(picture) {
      const runs = data.classes[state.class].runs[state.slice];
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.fillStyle = "#000";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.setTransform(...view(runs));
      if (picture) pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
      if (state.mode === "fill") paintAreas(runs);
      if (state.mode === "outline") paintOutlines(runs);
      if (state.place && state.place.slice === state.slice) paintPlace(state.place);
      if (data.letters) paintLetters(data.letters);
    }

    function show(slice) {
      state.slice = Math.min(Math.max(slice, 0), depth - 1);
      slider.value = state.slice;
      output.textContent = `${state.slice + 1} / ${depth}`;
      if (!data.images.length) return paint(null);
      const [picture, wanted] = [new Image(), state.slice];
      picture.onload = () => { if (wanted === state.slice) paint(picture); };
      picture.src = `data:image/jpeg;base64,${data.images[wanted]}`;
    }

    function choose(index) {
      state.class = index;
      state.place = null;
      article.querySelectorAll(".jumps button").forEach((button) => button.setAttribute("aria-pressed", false));
      article.querySelectorAll(".findings").forEach((list) => { list.hidden = Number(list.dataset.class) !== index; });
      show(data.classes[index].open);
    }

    function jump(button) {
      state.place = Object.fromEntries(Object.entries(button.dataset).map(([key, value]) => [key, Number(value)]));
      article.querySelectorAll(".jumps button").forEach((other) => other.setAttribute("aria-pressed", other === button));
      show(state.place.slice);
    }

    slider.addEventListener("input", () => show(Number(slider.value)));
    canvas.addEventListener("keydown", (event) => {
      if (!(event.key in KEYS)) return;
      event.preventDefault();
      show(state.slice + KEYS[event.key]);
    });
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return; // let the page scroll past a picture nobody has clicked
      event.preventDefault();
      show(state.slice - Math.sign(event.deltaY));
    }, { passive: false });
    article.querySelectorAll("input[type=radio]").forEach((radio) => radio.addEventListener("change", () => {
      state.mode = radio.value;
      show(state.slice);
    }));
    article.querySelectorAll(".jumps button").forEach((button) => button.addEventListener("click", () => jump(button)));
    find(".zoom input").addEventListener("change", (event) => {
      state.zoom = event.target.checked ? 3 : 1;
      show(state.slice);
    });
    if (select) select.addEventListener("change", () => choose(Number(select.value)));
    choose(state.class);
  }

  document.querySelectorAll("article.case").forEach(startViewer);
  // Paper cannot be clicked: it gets the whole lists.
  addEventListener("beforeprint", () => document.querySelectorAll(".more").forEach((list) => { list.open = true; }));
})();
