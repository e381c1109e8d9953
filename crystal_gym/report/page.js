"use strict";
(async () => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const settings = { responsive: true, displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  // Wong's colours, which the colour-blind tell apart, lightened where they are dark on dark.
  const palette = () => dark.matches
    ? ["#56b4e9", "#e69f00", "#2fc79b", "#f08a5d", "#d9a0c6", "#f0e442", "#8fb8de", "#c8c8c8",
        "#d46a92", "#5fb3a8"]
    : ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b37700", "#56b4e9", "#7f6a00", "#555555",
        "#882255", "#44aa99"];

  async function unpackPlotly() {
    const text = document.getElementById("plotly").textContent.trim();
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.text = await new Response(stream).text();
    document.head.append(script);
  }

  function themed(layout) {
    const ink = css("--ink"), line = css("--line");
    const out = { margin: { l: 60, r: 15, t: 20, b: 50 }, hovermode: "closest", ...layout,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: palette(),
      font: { color: ink, family: "system-ui, sans-serif" },
      hoverlabel: { bgcolor: css("--back"), bordercolor: line, font: { color: ink } },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", ...layout.legend } };
    for (const name of Object.keys(out).filter(k => /^[xy]axis/.test(k)))
      out[name] = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true,
        ...out[name] };
    for (const name of ["xaxis", "yaxis"])
      out[name] = out[name] || { gridcolor: line, zerolinecolor: line };
    return out;
  }

  const plots = [...document.querySelectorAll(".plot")].map(element => ({ element,
    spec: JSON.parse(element.querySelector("script").textContent) }));
  const drawPlots = () => plots.map(({ element, spec }) =>
    Plotly.react(element, structuredClone(spec.data), themed(spec.layout), settings));

  // A unit sphere: an icosahedron whose faces are split twice.
  function sphere() {
    const t = (1 + Math.sqrt(5)) / 2;
    const points = [[-1, t, 0], [1, t, 0], [-1, -t, 0], [1, -t, 0], [0, -1, t], [0, 1, t],
      [0, -1, -t], [0, 1, -t], [t, 0, -1], [t, 0, 1], [-t, 0, -1], [-t, 0, 1]];
    let faces = [[0, 11, 5], [0, 5, 1], [0, 1, 7], [0, 7, 10], [0, 10, 11], [1, 5, 9], [5, 11, 4],
      [11, 10, 2], [10, 7, 6], [7, 1, 8], [3, 9, 4], [3, 4, 2], [3, 2, 6], [3, 6, 8], [3, 8, 9],
      [4, 9, 5], [2, 4, 11], [6, 2, 10], [8, 6, 7], [9, 8, 1]];
    for (let round = 0; round < 2; round++) {
      const middle = new Map();
      const between = (a, b) => {
        const key = Math.min(a, b) + "," + Math.max(a, b);
        if (!middle.has(key)) {
          points.push(points[a].map((x, i) => (x + points[b][i]) / 2));
          middle.set(key, points.length - 1);
        }
        return middle.get(key);
      };
      faces = faces.flatMap(([a, b, c]) => {
        const ab = between(a, b), bc = between(b, c), ca = between(c, a);
        return [[a, ab, ca], [b, bc, ab], [c, ca, bc], [ab, bc, ca]];
      });
    }
    return { points: points.map(p => p.map(x => x / Math.hypot(...p))), faces };
  }
  const ball = sphere();

  function lines(pairs, color, width) {
    const trace = { type: "scatter3d", mode: "lines", x: [], y: [], z: [], hoverinfo: "skip",
      line: { color, width }, showlegend: false };
    for (const pair of pairs) for (const point of [...pair, [null, null, null]])
      ["x", "y", "z"].forEach((axis, i) => trace[axis].push(point[i]));
    return trace;
  }

  function drawScene(element, crystal) {
    const atoms = { type: "mesh3d", x: [], y: [], z: [], i: [], j: [], k: [], vertexcolor: [],
      text: [], hoverinfo: "text", lighting: { ambient: 0.55, diffuse: 0.6, specular: 0.25 },
      flatshading: false };
    for (const atom of crystal.atoms) {
      const first = atoms.x.length;
      for (const p of ball.points) {
        ["x", "y", "z"].forEach((axis, n) =>
          atoms[axis].push(atom.position[n] + atom.radius * p[n]));
        atoms.vertexcolor.push(atom.color);
        atoms.text.push(atom.element);
      }
      for (const face of ball.faces)
        ["i", "j", "k"].forEach((corner, n) => atoms[corner].push(first + face[n]));
    }
    const none = { visible: false, showspikes: false };
    const legend = crystal.legend.map(({ element: name, color }) => ({ type: "scatter3d",
      mode: "markers", x: [null], y: [null], z: [null], name, marker: { color, size: 9 } }));
    element.setAttribute("aria-label", "Ball model of " + crystal.title);
    return Plotly.react(element,
      [atoms, lines(crystal.bonds, css("--faint"), 5), lines(crystal.cell, css("--ink"), 2),
        ...legend],
      { margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)",
        font: { color: css("--ink") }, showlegend: true, uirevision: crystal.title,
        legend: { x: 0, y: 1, bgcolor: "rgba(0,0,0,0)", itemclick: false,
          itemdoubleclick: false },
        scene: { xaxis: none, yaxis: none, zaxis: none, aspectmode: "data",
          camera: { eye: { x: 1.4, y: 1.1, z: 0.7 }, projection: { type: "orthographic" } } } },
      settings);
  }

  const viewers = [...document.querySelectorAll(".viewer")].map(element => {
    const spec = JSON.parse(element.querySelector("script").textContent);
    const select = element.querySelector("select") || { value: "0", addEventListener() {} };
    const headings = element.querySelectorAll("h3"), places = element.querySelectorAll(".scene");
    const draw = () => spec.groups[Number(select.value)].map((n, column) => {
      headings[column].textContent = spec.scenes[n].title;
      return drawScene(places[column], spec.scenes[n]);
    });
    select.addEventListener("change", draw);
    for (const button of element.querySelectorAll("button"))
      button.addEventListener("click", () => {
        const n = spec.groups.length;
        select.value = String((Number(select.value) + Number(button.dataset.step) + n) % n);
        draw();
      });
    return draw;
  });

  const drawAll = () => Promise.all([...drawPlots(), ...viewers.flatMap(draw => draw())]);
  try {
    await unpackPlotly();
    await drawAll();
    dark.addEventListener("change", drawAll);
    document.documentElement.dataset.drawn = "yes";
  } catch (error) {
    for (const element of document.querySelectorAll(".plot, .scene"))
      element.textContent = "This figure needs a browser of 2023 or newer, with WebGL for crystals.";
    console.error(error);
  }
})();
