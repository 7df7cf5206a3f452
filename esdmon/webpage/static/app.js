// The names and colours of phases, the pieces of a page, and the two sources of data.
// The files of this folder are one script, in the order of `esdmon.webpage.assets`. They have no imports, and build the
// page by createElement and textContent alone, so that the names of layers cannot become code.

const PHASES = [
  {code: '0', letter: 'R', name: 'random-like', colour: '#7f8fa9'},
  {code: '1', letter: 'B', name: 'bleeding-out', colour: '#2aa1b3'},
  {code: '2', letter: 'S', name: 'bulk+spikes', colour: '#3b7dd8'},
  {code: '3', letter: 'D', name: 'bulk-decay', colour: '#a562d6'},
  {code: '4', letter: 'H', name: 'heavy-tailed', colour: '#2e9e5b'},
  {code: '5', letter: 'C', name: 'rank-collapse', colour: '#d8433b'},
  {code: '-', letter: 'U', name: 'unclassified', colour: '#b0b0b0'},
];
const STATES = [
  ...PHASES,
  {code: '.', letter: '', name: 'not read yet', colour: null},
  {code: 'N', letter: 'N', name: 'NaN or infinity', colour: '#111111'},
  {code: 'Z', letter: 'Z', name: 'all zero, or too small', colour: '#6b5b4b'},
  {code: 'F', letter: 'F', name: 'reading failed', colour: '#6b2b4b'},
  {code: 'S', letter: '–', name: 'skipped', colour: null},
];
const STATE_OF = Object.fromEntries(STATES.map(state => [state.code, state]));
const SEVERITIES = {critical: '#b02a8f', error: '#d8433b', warning: '#c98a00', info: '#7f8fa9'};
const LINE_COLOURS = ['#3b7dd8', '#d8773b', '#2e9e5b', '#a562d6', '#8a6d3b', '#c2478f'];

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (key === 'style') Object.assign(node.style, value);
    else if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter(isThere));
  return node;
}

const isThere = value => value !== null && value !== undefined;
const fill = (node, ...children) => node.replaceChildren(...children.filter(isThere));

function httpSource(base) {
  const get = async (route, query = {}) => {
    const answer = await fetch(`${base}/${route}?${new URLSearchParams(query)}`);
    if (!answer.ok) throw new Error(`${route}: HTTP ${answer.status}`);
    return answer.json();
  };
  return {
    runs: async () => (await get('runs')).runs, // in the order in which they began
    first: runs => runs.at(-1),
    overview: (run, after = '') => get('overview', {run, after}),
    lines: (run, layer) => get('lines', {run, layer}),
    frames: (run, layer) => get('frames', {run, layer}),
  };
}

function embeddedSource(data) {
  const of = run => data.runs.find(each => each.name === run);
  const noLines = {steps: [], values: {}}, noFrames = {steps: [], frames: []};
  return {
    runs: async () => data.runs.map(run => run.name),
    first: runs => runs[0],
    overview: async run => of(run).overview,
    lines: async (run, layer) => of(run).lines[layer] || noLines,
    frames: async (run, layer) => of(run).frames[layer] || noFrames,
    notes: data.notes,
  };
}

// A canvas of a size in CSS pixels, sharp on any screen, with its 2-D context.
function canvasOf(width, height, label) {
  const scale = window.devicePixelRatio || 1;
  const canvas = el('canvas', {role: 'img', 'aria-label': label, style: {width: `${width}px`, height: `${height}px`}});
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext('2d');
  context.scale(scale, scale);
  context.font = '11px system-ui, sans-serif';
  return [canvas, context];
}

// The colours of the page, which depend on dark mode.
function theme() {
  const style = getComputedStyle(document.body);
  return Object.fromEntries(['fg', 'mute', 'line', 'bg', 'bar', 'noise', 'other']
    .map(name => [name, style.getPropertyValue(`--${name}`).trim()]));
}

// The index of the last element that is at most a value; 0 where there is none.
function lastUpTo(sorted, value) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle + 1; else high = middle;
  }
  return Math.max(0, low - 1);
}

function niceTicks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 5, 10].map(k => k * power).find(k => k >= raw) || power;
  const ticks = [];
  for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++) ticks.push(k * step);
  return ticks;
}

// The names of the layers from top to bottom, as they are grouped on the map.
const namesInOrder = view => view.groups.flatMap(group => group.rows).map(row => view.layers[row].name);

function shorten(text, context, width) {
  if (context.measureText(text).width <= width) return text;
  let tail = text;
  while (tail.length > 1 && context.measureText(`…${tail}`).width > width) tail = tail.slice(1);
  return `…${tail}`;
}

const shown = (value, digits = 2) => !isThere(value) ? '–'
  : Math.abs(value) >= 1e4 || (value !== 0 && Math.abs(value) < 10 ** -digits) ? value.toExponential(1)
    : String(Number(value.toPrecision(3)));
const withError = (value, error) => isThere(value) && isThere(error) ? `${value.toFixed(2)} ± ${error.toFixed(2)}` : shown(value);
