// The phase map: a row for each layer, a column for each step, alerts on the rows and above them.

const MAP = {top: 20, bottom: 22, gap: 7, height: 560, named: 3, legible: 11}; // rows of at least 11 pixels have room for a text

// Left of the cells are names, right of them the present phases. On a phone the cells get half of the width: names are
// shortened, and a row ends with the letter of its phase.
const marginsOf = width => width < 600 ? {left: Math.round(width * 0.4), right: 36} : {left: 220, right: 96};

// Where each row is drawn: groups from top to bottom, and rows in them; and where the cells of all rows begin and end.
function mapLayout(view, width) {
  const count = view.layers.length, groups = view.groups;
  const room = MAP.height - MAP.gap * groups.length;
  const rowHeight = Math.max(3, Math.min(22, Math.floor(room / Math.max(1, count))));
  const order = [], tops = new Map(), bands = [];
  let y = MAP.top;
  for (const group of groups) {
    bands.push({kind: group.kind, rows: group.rows, top: y, first: order.length});
    for (const row of group.rows) {
      tops.set(row, y);
      order.push(row);
      y += rowHeight;
    }
    y += MAP.gap;
  }
  const bottom = y - MAP.gap, margins = marginsOf(width), left = margins.left, right = width - margins.right;
  return {rowHeight, isLow: rowHeight < MAP.legible, order, tops, bands, left, right, rightMargin: margins.right, bottom,
    height: bottom + MAP.bottom};
}

function stepAxis(domain, left, right) {
  const [from, to] = domain, span = to - from || 1;
  return {
    x: step => left + (Math.min(Math.max(step, from), to) - from) / span * (right - left),
    step: x => from + (x - left) / (right - left) * span,
  };
}

// From the first step to the end of the last column, which is as wide as those before it on average.
function domainOf(views) {
  const known = views.filter(view => view && view.steps.length);
  if (!known.length) return [0, 1];
  const from = Math.min(...known.map(view => view.steps[0]));
  const to = Math.max(...known.map(view => {
    const first = view.steps[0], last = view.steps.at(-1);
    return last + Math.max(1, (last - first) / Math.max(1, view.steps.length - 1));
  }));
  return [from, to];
}

// Skipped layers recede: they have no numbers, and nothing is wrong with them.
const fillOf = (state, colours) => state.code === 'S' ? colours.line : state.colour;

function rgbaOf(hex) {
  if (!hex) return 0;
  const value = parseInt(hex.slice(1), 16);
  return (255 << 24 | (value & 255) << 16 | (value >> 8 & 255) << 8 | value >> 16) >>> 0;
}

// One pixel a row and a pixel for each place on the axis, to be scaled: filling a rectangle for each cell takes twenty
// times as long.
function cellImage(view, layout, axis, colours) {
  const image = document.createElement('canvas');
  image.width = Math.max(1, layout.right - layout.left);
  image.height = Math.max(1, layout.order.length);
  const context = image.getContext('2d'), data = context.createImageData(image.width, image.height);
  const pixels = new Uint32Array(data.data.buffer);
  const fills = Object.fromEntries(STATES.map(state => [state.code, rgbaOf(fillOf(state, colours))]));
  const columns = Array.from({length: image.width}, (_, k) => {
    const step = axis.step(layout.left + k + 0.5);
    return step < view.steps[0] ? -1 : lastUpTo(view.steps, step);
  });
  layout.order.forEach((row, line) => {
    const codes = view.rows[row];
    for (let k = 0; k < columns.length; k++) {
      pixels[line * image.width + k] = columns[k] < 0 ? 0 : fills[codes[columns[k]]] || 0;
    }
  });
  context.putImageData(data, 0, 0);
  return image;
}

// Alerts of a run as intervals: when each began, and when it ended or null.
function alertSpans(view) {
  const spans = new Map();
  for (const alert of view.alerts) {
    const before = spans.get(alert.id), goesOn = before && before.end === null;
    if (alert.state === 'resolved') {
      if (goesOn) before.end = alert.step;
      continue;
    }
    if (goesOn) {
      before.layers = [...new Set([...before.layers, ...alert.layers])];
    } else {
      if (before) spans.set(`${alert.id}@${before.step}`, before);
      spans.set(alert.id, {...alert, end: null});
    }
  }
  return [...spans.values()];
}

function drawMap(view, width, {domain, selected, caption}) {
  const layout = mapLayout(view, width), {left, right} = layout, colours = theme();
  const [canvas, g] = canvasOf(width, layout.height, `${caption}: phases of ${view.layers.length} layers by step`);
  const axis = stepAxis(domain, left, right);
  const spans = alertSpans(view), index = new Map(view.layers.map((layer, row) => [layer.name, row]));
  if (view.steps.length) {
    const image = cellImage(view, layout, axis, colours);
    g.imageSmoothingEnabled = false;
    for (const band of layout.bands) {
      const height = band.rows.length * layout.rowHeight;
      g.drawImage(image, 0, band.first, image.width, band.rows.length, left, band.top, right - left, height);
      g.strokeStyle = colours.line;
      g.strokeRect(left + 0.5, band.top + 0.5, right - left - 1, height - 1);
    }
    drawLetters(g, view, layout, axis, colours);
  }
  const alerted = new Map();
  const rank = span => (span.end === null) * 10 - Object.keys(SEVERITIES).indexOf(span.severity);
  for (const span of [...spans].sort((a, b) => rank(a) - rank(b))) { // the most severe on top
    drawSpan(g, span, index, layout, axis, colours, alerted);
  }
  drawLabels(g, view, layout, colours, alerted);
  drawCounts(g, view, layout, colours);
  g.fillStyle = colours.mute;
  g.textAlign = 'center';
  g.textBaseline = 'top';
  for (const tick of niceTicks(domain[0], domain[1], Math.max(2, (right - left) / 110))) {
    g.fillRect(axis.x(tick), layout.bottom, 1, 4);
    g.fillText(tick, axis.x(tick), layout.bottom + 6);
  }
  g.textAlign = 'left';
  g.fillText('step', right + 8, layout.bottom + 6);
  if (selected && index.has(selected.layer)) {
    const y = layout.tops.get(index.get(selected.layer)), x = axis.x(selected.step);
    g.strokeStyle = colours.fg;
    g.lineWidth = 1.5;
    g.strokeRect(left - 1, y - 1, right - left + 2, layout.rowHeight + 2);
    g.beginPath();
    g.moveTo(x, MAP.top - 4);
    g.lineTo(x, layout.bottom + 4);
    g.stroke();
  }
  return Object.assign(canvas, {find: finder(view, layout, axis, spans), place: (name, step) => {
    const row = index.get(name), next = view.steps[lastUpTo(view.steps, step) + 1] ?? domain[1];
    return {x: axis.x((step + next) / 2), y: layout.tops.get(row) + layout.rowHeight / 2 - 1};
  }});
}

// A letter at the beginning of each stretch of one phase, where rows are high enough for one.
function drawLetters(g, view, layout, axis, colours) {
  if (layout.isLow) return;
  g.font = 'bold 10px system-ui, sans-serif';
  g.textAlign = 'left';
  g.textBaseline = 'middle';
  for (const row of layout.order) {
    const codes = view.rows[row];
    for (let from = 0, to = 0; from < codes.length; from = to) {
      while (to < codes.length && codes[to] === codes[from]) to++;
      const start = axis.x(view.steps[from]);
      const end = to < codes.length ? axis.x(view.steps[to]) : axis.x(Infinity), state = STATE_OF[codes[from]];
      if (end - start < 12 || !state || !state.letter) continue;
      g.fillStyle = state.colour ? state.code === '-' ? '#333333' : '#ffffff' : colours.mute;
      g.fillText(state.letter, start + 3, layout.tops.get(row) + layout.rowHeight / 2 + 0.5);
    }
  }
  g.font = '11px system-ui, sans-serif';
}

// A bar on each alerted row from when it began, and a triangle above the map at the step of the alert. Where rows are too
// low for a bar, which would hide their phases, a mark where it began, and one beside the row.
function drawSpan(g, span, index, layout, axis, colours, alerted) {
  const colour = SEVERITIES[span.severity] || SEVERITIES.warning, isOpen = span.end === null, {isLow} = layout;
  const from = axis.x(span.since), to = isLow ? from + 4 : Math.max(from + 3, axis.x(isOpen ? Infinity : span.end));
  const thickness = isLow ? layout.rowHeight : 4;
  for (const name of span.layers) {
    if (!index.has(name)) continue;
    const top = layout.tops.get(index.get(name)), y = top + layout.rowHeight - thickness;
    if (!isLow) {
      g.fillStyle = colours.bg;
      g.fillRect(from - 1, y - 1, to - from + 2, thickness + 1);
    }
    g.fillStyle = colour;
    g.fillRect(from, y, to - from, thickness);
    if (!isOpen) continue;
    if (isLow) g.fillRect(layout.left - 6, top, 5, layout.rowHeight);
    alerted.set(index.get(name), colour);
  }
  const x = axis.x(span.step);
  g.beginPath();
  g.moveTo(x - 5, MAP.top - 14);
  g.lineTo(x + 5, MAP.top - 14);
  g.lineTo(x, MAP.top - 5);
  g.closePath();
  g.fillStyle = g.strokeStyle = colour;
  g.lineWidth = 1.5;
  if (isOpen) g.fill();
  g.stroke();
  g.lineWidth = 1;
}

// Names of rows; where rows are too low for that, those of a few alerted rows, then of the kinds.
function drawLabels(g, view, layout, colours, alerted) {
  const half = layout.rowHeight / 2, {isLow} = layout, labels = [];
  for (const band of layout.bands) {
    const marked = band.rows.filter(row => alerted.has(row)), isGroup = isLow && band.kind !== '';
    if (isGroup) {
      const count = marked.length ? `${marked.length} of ${band.rows.length}` : `×${band.rows.length}`;
      labels.push({text: `${marked.length ? '● ' : ''}${band.kind}  ${count}`, y: band.top + band.rows.length * half,
        colour: marked.length ? alerted.get(marked[0]) : colours.fg, weight: marked.length > MAP.named ? 0 : 1});
    }
    for (const row of isGroup ? marked.slice(0, marked.length > MAP.named ? 0 : MAP.named) : band.rows) {
      const isMarked = alerted.has(row);
      labels.push({text: `${isMarked ? '● ' : ''}${view.layers[row].name}`, y: layout.tops.get(row) + half,
        colour: isMarked ? alerted.get(row) : colours.fg, weight: isMarked ? 0 : 2});
    }
  }
  const taken = [];
  g.textAlign = 'right';
  g.textBaseline = 'middle';
  for (const label of labels.sort((a, b) => a.weight - b.weight)) {
    if (taken.some(y => Math.abs(y - label.y) < 11)) continue;
    taken.push(label.y);
    g.fillStyle = label.colour;
    g.font = `${label.text.startsWith('●') ? 'bold ' : ''}11px system-ui, sans-serif`;
    g.fillText(shorten(label.text, g, layout.left - 18), layout.left - 12, label.y);
  }
  g.font = '11px system-ui, sans-serif';
}

// At the right end, how many layers of a group are in each phase now; for a single row its phase, by name if that fits.
function drawCounts(g, view, layout, colours) {
  if (!view.steps.length) return;
  g.textAlign = 'left';
  g.textBaseline = 'middle';
  g.fillStyle = colours.fg;
  const write = (text, y) => g.fillText(text, layout.right + 8, y, layout.rightMargin - 10);
  for (const band of layout.bands) {
    if (!layout.isLow) {
      for (const row of band.rows) {
        const state = STATE_OF[view.rows[row].at(-1)];
        write(state ? (layout.rightMargin < 60 ? state.letter : state.name) : '', layout.tops.get(row) + layout.rowHeight / 2);
      }
      continue;
    }
    const counts = new Map();
    for (const row of band.rows) counts.set(view.rows[row].at(-1), (counts.get(view.rows[row].at(-1)) || 0) + 1);
    const sorted = [...counts].filter(([code]) => code !== '.').sort((a, b) => b[1] - a[1]);
    const text = sorted.map(([code, count]) => `${count} ${(STATE_OF[code] || {}).letter}`).join('  ');
    if (band.rows.length * layout.rowHeight >= 10) write(text, band.top + band.rows.length * layout.rowHeight / 2);
  }
}

// What is at a place of the map: an alert above it, or the layer and the index of the column.
function finder(view, layout, axis, spans) {
  return (x, y) => {
    if (y < MAP.top - 2) {
      const near = spans.filter(span => Math.abs(axis.x(span.step) - x) <= 6);
      return near.length ? {alert: near.at(-1)} : null;
    }
    if (x > layout.right || !view.steps.length) return null;
    const row = layout.order.find(each => y >= layout.tops.get(each) && y < layout.tops.get(each) + layout.rowHeight);
    if (row === undefined) return null;
    const column = x < layout.left ? view.steps.length - 1 : lastUpTo(view.steps, axis.step(x));
    return {layer: view.layers[row].name, row, column, step: view.steps[column]};
  };
}
