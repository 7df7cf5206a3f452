// The spectrum of a layer at one step, and lines of its measures over the steps.

const ESD = {left: 54, right: 10, top: 10, bottom: 36};
const DECADES = 8; // eigenvalues further below the largest are numerically zero, and would squeeze the others
const BELOW = 2; // decades below the smallest eigenvalue of the median step: a collapse at few steps would squeeze all others
const LINE_CHARTS = [
  {title: 'alpha', key: 'alpha', band: ['alpha_low', 'alpha_high'], nullKey: 'alpha_null', spread: 'alpha_stderr',
    dim: 'alpha_is_meaningful', hint: 'dashed and pale: not meaningful'},
  {title: 'MP soft rank', key: 'mp_soft_rank', nullValue: 1},
  {title: 'stable rank', key: 'stable_rank', nullKey: 'stable_rank_null'},
  {title: 'spikes', key: 'n_spikes', nullValue: 0},
  {title: 'update ratio ‖ΔW‖/‖W‖', key: 'update_ratio', log: true},
  {title: 'Frobenius norm', key: 'frobenius_norm'},
];

const binOf = frame => (frame.high - frame.low) / frame.counts.length;
const sum = numbers => numbers.reduce((total, number) => total + number, 0);
const totalOf = frame => sum(frame.counts) + (frame.zeros || 0);

// The bars of a frame as [left, right, log₁₀ density], with empty bins left out.
function barsOf(frame) {
  const width = binOf(frame), total = totalOf(frame);
  return frame.counts.flatMap((count, k) => {
    const from = frame.low + k * width;
    return count ? [[from, from + width, logDensity(count / total, from, from + width)]] : [];
  });
}

// log₁₀ of the density of a share of the eigenvalues between two values of log₁₀ λ.
const logDensity = (share, from, to) => Math.log10(share / (10 ** to - 10 ** from));

// Limits that hold for all frames, so that the axes stand still while they are played.
function esdLimits(frames) {
  const high = Math.max(...frames.map(frame => Math.max(frame.high, Math.log10(frame.bulk_edge || 1e-300)))) + 0.05;
  const lows = frames.map(frame => frame.low).sort((a, b) => a - b), usual = lows[lows.length >> 1];
  const low = Math.max(lows[0], usual - BELOW, high - DECADES) - 0.05;
  const heights = frames.flatMap(frame => barsOf(frame).filter(bar => bar[1] > low).map(bar => bar[2]));
  return {low, high, bottom: Math.min(...heights) - 0.4, top: Math.max(...heights) + 0.4};
}

// The density of the noise that fits the bulk, as points [log₁₀ λ, log₁₀ density].
function noiseCurve(frame) {
  const total = totalOf(frame), width = binOf(frame);
  if (frame.noise && frame.noise.length) { // rows and columns of different scales: expected counts
    return frame.noise.map((expected, k) => {
      const from = frame.low + k * width;
      return [from + width / 2, logDensity(expected / total, from, from + width)];
    });
  }
  if (!frame.bulk_sigma || !frame.M || !frame.bulk_edge) return [];
  const variance = frame.bulk_sigma ** 2, q = frame.N / frame.M; // Marchenko-Pastur
  const low = variance * (1 - q ** -0.5) ** 2, high = variance * (1 + q ** -0.5) ** 2;
  const share = 1 - (frame.n_spikes || 0) / (frame.M * (frame.slices || 1));
  const from = Math.log10(Math.max(low, high * 1e-6)), to = Math.log10(high);
  return Array.from({length: 200}, (_, k) => {
    const x = from + (to - from) * (k + 0.5) / 200, value = 10 ** x;
    const root = Math.sqrt(Math.max(0, (high - value) * (value - low)));
    return [x, Math.log10(share * q * root / (2 * Math.PI * variance * value))];
  });
}

function drawEsd(frame, limits, width, height, other) {
  const colours = theme(), [canvas, g] = canvasOf(width, height, 'density of the eigenvalues, on logarithmic axes');
  const right = width - ESD.right, bottom = height - ESD.bottom;
  const X = value => ESD.left + (value - limits.low) / (limits.high - limits.low) * (right - ESD.left);
  const Y = value => bottom - (value - limits.bottom) / (limits.top - limits.bottom) * (bottom - ESD.top);
  drawDecades(g, limits, X, Y, right, bottom, colours);
  g.save();
  g.beginPath();
  g.rect(ESD.left, ESD.top, right - ESD.left, bottom - ESD.top + 12);
  g.clip();
  g.fillStyle = colours.bar;
  for (const [from, to, density] of barsOf(frame)) {
    g.fillRect(X(from), Y(density), Math.max(1, X(to) - X(from) - 0.5), bottom - Y(density));
  }
  if (other) {
    stroke(g, barsOf(other).flatMap(([from, to, density]) => [[X(from), Y(density)], [X(to), Y(density)]]), colours.other);
  }
  const noise = noiseCurve(frame).filter(point => point[1] > limits.bottom - 1);
  stroke(g, noise.map(([x, y]) => [X(x), Y(y)]), colours.noise, 2);
  if (frame.bulk_edge) {
    const x = X(Math.log10(frame.bulk_edge));
    stroke(g, [[x, ESD.top], [x, bottom]], colours.noise, 1.5, [2, 3]);
  }
  if (frame.alpha > 1 && frame.xmin > 0 && frame.n_tail) {
    const from = Math.log10(frame.xmin), start = Math.log10(frame.n_tail / totalOf(frame) * (frame.alpha - 1)) - from;
    const end = start - frame.alpha * (frame.high - from);
    stroke(g, [[X(from), Y(start)], [X(frame.high), Y(end)]], colours.fg, 2, frame.meaningful ? [] : [6, 5]);
  }
  for (const [place, value] of (frame.top || []).entries()) { // the largest eigenvalues one by one; bins blur them
    const isSpike = place < frame.n_spikes;
    g.fillStyle = isSpike ? colours.noise : colours.mute;
    g.fillRect(X(Math.log10(value)) - 0.75, bottom + 1, 1.5, isSpike ? 9 : 6);
  }
  g.restore();
  const smaller = sum(frame.counts.filter((_, k) => frame.low + (k + 1) * binOf(frame) <= limits.low));
  if (smaller) {
    g.fillStyle = colours.mute;
    g.textAlign = 'left';
    g.textBaseline = 'top';
    g.fillText(`← ${smaller} smaller`, ESD.left + 4, ESD.top + 4);
  }
  return canvas;
}

function drawDecades(g, limits, X, Y, right, bottom, colours) {
  const power = k => `10${[...String(k)].map(c => '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'['-0123456789'.indexOf(c)]).join('')}`;
  const every = span => Math.max(1, Math.ceil(span / 6));
  g.fillStyle = colours.mute;
  g.strokeStyle = colours.line;
  g.textAlign = 'center';
  g.textBaseline = 'top';
  for (let k = Math.ceil(limits.low), step = every(limits.high - limits.low); k <= limits.high; k += step) {
    stroke(g, [[X(k), ESD.top], [X(k), bottom]], colours.line);
    g.fillText(power(k), X(k), bottom + 11);
  }
  g.textAlign = 'right';
  g.textBaseline = 'middle';
  for (let k = Math.ceil(limits.bottom), step = every(limits.top - limits.bottom); k <= limits.top; k += step) {
    stroke(g, [[ESD.left, Y(k)], [right, Y(k)]], colours.line);
    g.fillText(power(k), ESD.left - 5, Y(k));
  }
  stroke(g, [[ESD.left, bottom], [right, bottom]], colours.mute);
  g.textAlign = 'center';
  g.textBaseline = 'bottom';
  g.fillText('eigenvalue λ of WᵀW/N', (ESD.left + right) / 2, bottom + ESD.bottom);
  g.save();
  g.translate(12, (ESD.top + bottom) / 2);
  g.rotate(-Math.PI / 2);
  g.fillText('density', 0, 0);
  g.restore();
}

function stroke(g, points, colour, width = 1, dash = []) {
  g.beginPath();
  g.strokeStyle = colour;
  g.lineWidth = width;
  g.setLineDash(dash);
  points.forEach(([x, y], k) => k ? g.lineTo(x, y) : g.moveTo(x, y));
  g.stroke();
  g.setLineDash([]);
  g.lineWidth = 1;
}

// Stretches of points without a gap, as [[step, value], …].
function stretches(steps, values) {
  const found = [[]];
  steps.forEach((step, k) => {
    if (isThere(values[k])) found.at(-1).push([step, values[k]]); else found.push([]);
  });
  return found.filter(stretch => stretch.length);
}

// One measure of several series {name, colour, dash, lines}, with a vertical line at a step.
function drawLines(chart, series, domain, step, width, height) {
  const colours = theme(), [canvas, g] = canvasOf(width, height, `${chart.title} by step`);
  const scaled = chart.log ? value => value > 0 ? Math.log10(value) : -Infinity : value => value; // zero is at the bottom
  const column = (lines, key) => (lines.values[key] || []).map(value => value === null ? null : scaled(value));
  const range = rangeOf(chart, series, column);
  if (!range) return null;
  const [low, high] = range, pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  const left = 46, right = width - 6, bottom = height - 16;
  const Y = value => Math.min(bottom - 1, bottom - (value - low + pad) / (high - low + 2 * pad) * (bottom - 4));
  const axis = stepAxis(domain, left, right), at = ([x, y]) => [axis.x(x), Y(y)];
  g.fillStyle = colours.mute;
  g.textAlign = 'right';
  g.textBaseline = 'middle';
  for (const tick of niceTicks(low, high, 4)) {
    stroke(g, [[left, Y(tick)], [right, Y(tick)]], colours.line);
    g.fillText(chart.log ? shown(10 ** tick, 4) : shown(tick), left - 4, Y(tick));
  }
  g.textAlign = 'center';
  g.textBaseline = 'top';
  for (const tick of niceTicks(domain[0], domain[1], 4)) g.fillText(tick, axis.x(tick), bottom + 3);
  g.save();
  g.beginPath();
  g.rect(left, 0, right - left, bottom);
  g.clip();
  if (chart.nullValue !== undefined) {
    stroke(g, [[left, Y(chart.nullValue)], [right, Y(chart.nullValue)]], colours.mute, 1.5, [2, 3]);
  }
  const {lines, colour} = series[0];
  for (const stretch of chart.nullKey ? stretches(lines.steps, column(lines, chart.nullKey)) : []) {
    stroke(g, stretch.map(at), colours.mute, 1.5, [2, 3]);
  }
  if (chart.band && series.length === 1) fillBand(g, lines, chart.band, at, colour);
  for (const each of series) drawSeries(g, each, column(each.lines, chart.key), chart.dim && each.lines.values[chart.dim], at);
  stroke(g, [[axis.x(step), 0], [axis.x(step), bottom]], colours.fg);
  g.restore();
  return canvas;
}

// The lowest and the highest value of a chart; null where there is none. A few large alphas would squeeze all others.
function rangeOf(chart, series, column) {
  const keys = [chart.key, ...(series.length === 1 && chart.band || [])];
  const nulls = chart.nullKey ? column(series[0].lines, chart.nullKey) : [];
  const values = [...series.flatMap(({lines}) => keys.flatMap(key => column(lines, key))), ...nulls, chart.nullValue];
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const most = chart.key === 'alpha' ? Math.max(8, sorted[Math.floor(sorted.length * 0.8)]) : Infinity;
  return [sorted[0], Math.min(sorted.at(-1), most)];
}

// The values of one series; where `sure` is given, those that are not meaningful are dashed and pale.
function drawSeries(g, {lines, colour, dash}, values, sure, at) {
  g.globalAlpha = sure ? 0.4 : 1;
  for (const stretch of stretches(lines.steps, values)) stroke(g, stretch.map(at), colour, 1.6, sure ? [3, 3] : dash);
  g.globalAlpha = 1;
  for (const stretch of sure ? stretches(lines.steps, values.map((value, k) => sure[k] ? value : null)) : []) {
    const points = stretch.map(at);
    if (points.length > 1) stroke(g, points, colour, 2, dash);
    else {
      g.fillStyle = colour;
      g.fillRect(points[0][0] - 2, points[0][1] - 2, 4, 4);
    }
  }
}

function fillBand(g, lines, [lowKey, highKey], at, colour) {
  const low = lines.values[lowKey] || [], high = lines.values[highKey] || [];
  const points = lines.steps.map((step, k) => [step, low[k], high[k]]).filter(point => point[1] !== null && point[2] !== null);
  if (points.length < 2) return;
  g.globalAlpha = 0.18;
  g.fillStyle = colour;
  g.beginPath();
  points.forEach(([step, , top], k) => k ? g.lineTo(...at([step, top])) : g.moveTo(...at([step, top])));
  for (const [step, bottom] of points.reverse()) g.lineTo(...at([step, bottom]));
  g.fill();
  g.globalAlpha = 1;
}
