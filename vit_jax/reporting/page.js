// Unpacks Plotly, draws every figure of the page in the colours of the page's style, and again when light turns dark.
"use strict";

const coloured = (text) => {
  const style = getComputedStyle(document.documentElement);
  return JSON.parse(text.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim()));
};

const SETTINGS = {
  responsive: true, displaylogo: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
};
const hidden = new Set();  // numbers of runs

function draw(place) {
  const figure = coloured(place.querySelector("script").textContent);
  for (const trace of figure.data) trace.visible = !hidden.has(trace.meta?.run);
  // A finger that drags means the page, one that taps the bar of tools means the figure.
  if (matchMedia("(pointer: coarse)").matches) figure.layout.dragmode = false;
  const canvas = place.querySelector(".canvas");
  const before = canvas.layout;  // what was zoomed into stays so
  for (const axis of ["xaxis", "yaxis"])
    if (before?.[axis]?.autorange === false) Object.assign(figure.layout[axis], { range: before[axis].range, autorange: false });
  return Plotly.react(canvas, figure.data, figure.layout, SETTINGS);
}

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function start(packed) {
  const script = document.createElement("script");
  script.textContent = await unpacked(packed.textContent.trim());
  document.head.append(script);
  packed.remove();
  const places = [...document.querySelectorAll(".chart")];
  await Promise.all(places.map(draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => places.forEach(draw));
  for (const button of document.querySelectorAll(".legend button"))
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run), shown = hidden.delete(run);
      if (!shown) hidden.add(run);
      button.setAttribute("aria-pressed", shown);
      places.forEach(draw);
    });
  document.documentElement.dataset.drawn = places.length;
}

for (const button of document.querySelectorAll(".copied button"))
  button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("pre");
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "copied";
    } catch {  // not allowed here: marked, for the user to copy
      getSelection().selectAllChildren(text);
    }
  });

const packed = document.getElementById("plotly");  // not there where there is nothing to draw
if (packed)
  start(packed).catch((error) => {
    console.error(error);
    for (const place of document.querySelectorAll(".chart")) place.textContent = "This browser cannot draw the figure.";
  });
