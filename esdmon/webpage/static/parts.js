// The parts of the page, made once by `buildPage`, and what `drawPage` puts into them.

function buildPage(source) {
  const parts = {
    error: el('p', {className: 'esd-problem', role: 'alert', hidden: true}),
    run: el('select', {title: 'run', 'aria-label': 'run'}),
    other: el('select', {title: 'a second run, on the same axis', 'aria-label': 'compare with'}),
    where: el('span', {className: 'esd-mute'}),
    refresh: el('button', {type: 'button', textContent: '↻ refresh'}),
    now: el('section', {className: 'esd-now', 'aria-live': 'polite'}),
    empty: el('p', {className: 'esd-empty', textContent: 'Loading …'}),
    legend: el('div', {className: 'esd-legend'}),
    map: el('div', {className: 'esd-map', tabIndex: 0}),
    otherTitle: el('h3'),
    otherMap: el('div', {className: 'esd-map'}),
    title: el('h2'),
    play: el('button', {type: 'button', title: 'play (space)'}),
    slider: el('input', {type: 'range', min: 0, value: 0, 'aria-label': 'spectrum at step'}),
    player: el('div', {className: 'esd-player'}),
    key: el('div', {className: 'esd-key'}),
    words: el('p', {className: 'esd-mute'}),
    lines: el('div', {className: 'esd-lines'}),
    lineKey: el('div', {className: 'esd-key'}),
    alerts: el('div', {className: 'esd-alerts'}),
    table: el('div', {className: 'esd-table'}),
    tip: el('div', {className: 'esd-tip', hidden: true}),
  };
  const own = el('div', {className: 'esd-body', hidden: true},
    parts.now, parts.legend, parts.map, parts.otherTitle, parts.otherMap,
    el('div', {className: 'esd-columns'},
      el('section', {}, parts.title, el('div', {className: 'esd-bar'}, parts.play, parts.slider),
        parts.player, parts.key, parts.words),
      el('section', {}, el('h2', {textContent: 'Measures'}), parts.lineKey, parts.lines)),
    el('h2', {textContent: 'Alerts'}), parts.alerts, el('h2', {textContent: 'Last readings'}), parts.table);
  const notes = (source.notes || []).map(note => el('p', {className: 'esd-mute', textContent: note}));
  parts.body = own;
  parts.page = el('div', {className: 'esd'},
    el('div', {className: 'esd-bar'}, parts.run, parts.other, parts.where, parts.refresh),
    parts.error, ...notes, parts.empty, own, parts.tip);
  return parts;
}

function connect(parts, actions, state) {
  parts.run.addEventListener('change', () => { // begins at what is wrong in this run
    Object.assign(state, {run: parts.run.value, selected: null, compared: []});
    actions.load();
  });
  parts.other.addEventListener('change', () => { state.other = parts.other.value; actions.load(); });
  parts.refresh.addEventListener('click', actions.refresh);
  parts.play.addEventListener('click', actions.play);
  parts.slider.addEventListener('input', () => {
    const step = state.frames && state.frames.steps[+parts.slider.value];
    if (step !== undefined) actions.setStep(step);
  });
  const spot = (event, box) => {
    const canvas = box.firstChild, place = canvas && canvas.getBoundingClientRect();
    return canvas && canvas.find ? canvas.find(event.clientX - place.left, event.clientY - place.top) : null;
  };
  for (const [box, view] of [[parts.map, () => state.view], [parts.otherMap, () => state.otherView]]) {
    box.addEventListener('click', event => {
      const found = spot(event, box);
      if (!found) return;
      if (!found.alert) actions.choose(found.layer, found.step, {add: event.shiftKey});
      else if (found.alert.layer) actions.choose(found.alert.layer, found.alert.step);
    });
    box.addEventListener('mousemove', event => showTip(parts.tip, event, spot(event, box), view()));
    box.addEventListener('mouseleave', () => { parts.tip.hidden = true; });
  }
  document.addEventListener('keydown', event => {
    if (!state.selected || event.altKey || event.ctrlKey || event.metaKey) return;
    if (['INPUT', 'SELECT', 'BUTTON', 'TEXTAREA'].includes(event.target.tagName)) return;
    const action = {ArrowLeft: () => actions.move(-1), ArrowRight: () => actions.move(1), ' ': actions.play,
      ArrowUp: () => actions.moveLayer(-1), ArrowDown: () => actions.moveLayer(1)}[event.key];
    if (!action || ['ArrowUp', 'ArrowDown'].includes(event.key) && event.target !== parts.map) return;
    event.preventDefault();
    action();
  });
  window.addEventListener('resize', () => state.view && drawPage(parts, state, actions));
}

function showTip(tip, event, found, view) {
  tip.hidden = !found;
  if (!found) return;
  if (found.alert) {
    tip.textContent = `${severityWord(found.alert.severity)}, step ${found.alert.step}: ${found.alert.message}`;
  } else {
    const phase = STATE_OF[view.rows[found.row][found.column]];
    tip.textContent = `${found.layer}\nstep ${found.step}: ${phase ? phase.name : 'unknown'}`;
  }
  const room = document.documentElement.clientWidth;
  tip.style.left = `${Math.min(event.clientX + 14, room - 340) + window.scrollX}px`;
  tip.style.top = `${event.clientY + 16 + window.scrollY}px`;
}

function fillRuns(parts, runs, state) {
  const same = [...parts.run.options].map(option => option.value).join('\n') === runs.join('\n');
  if (same && parts.run.options.length) return;
  const option = name => el('option', {value: name, textContent: name});
  parts.run.replaceChildren(...runs.map(option));
  parts.other.replaceChildren(el('option', {value: '', textContent: 'compare with …'}), ...runs.map(option));
  if (state.run !== null) parts.run.value = state.run;
  parts.other.value = state.other;
}

function drawPage(parts, state, actions) {
  const {view, otherView, selected} = state, hasData = Boolean(view && view.steps.length && view.layers.length);
  parts.run.hidden = parts.run.options.length === 0;
  parts.other.hidden = parts.run.options.length < 2;
  parts.body.hidden = !hasData;
  parts.empty.hidden = hasData;
  if (!hasData) {
    parts.empty.textContent = state.run === null
      ? 'No readings of esdmon here yet. Train with esdmon.watch(model, optimizer): the first reading comes after '
        + 'every= steps (200 by default), and this page then shows it by itself.'
      : `The run ${state.run} has no reading yet. The first one comes after every= steps, and appears here by itself.`;
    return;
  }
  const last = view.steps.at(-1), domain = domainOf([view, otherView]);
  parts.where.textContent = `${view.layers.length} layers, steps ${view.steps[0]} to ${last}, `
    + `${view.steps.length} readings${view.charts_only ? '; from charts alone, so spectra have no noise curve' : ''}`;
  drawNow(parts.now, view, actions);
  drawLegend(parts.legend, view, otherView);
  const width = Math.max(320, parts.map.clientWidth);
  parts.map.replaceChildren(drawMap(view, width, {domain, selected, caption: state.run}));
  parts.otherTitle.hidden = parts.otherMap.hidden = !otherView;
  if (otherView) {
    parts.otherTitle.textContent = `compared with ${state.other}: ${otherView.now.title}`;
    parts.otherMap.replaceChildren(drawMap(asFirst(otherView, view), width, {domain, selected, caption: state.other}));
  }
  if (selected) {
    drawPlayer(parts, state);
    drawMeasures(parts, state, domain);
  }
  drawAlerts(parts.alerts, view, actions);
  drawTable(parts.table, view, selected, actions);
}

// The second run with its rows in the places of the first one's; layers that the first lacks come last.
function asFirst(view, first) {
  const index = new Map(view.layers.map((layer, row) => [layer.name, row])), used = new Set();
  const groups = first.groups.map(group => ({kind: group.kind, rows: group.rows
    .map(row => index.get(first.layers[row].name)).filter(row => row !== undefined)}));
  for (const group of groups) for (const row of group.rows) used.add(row);
  const rest = view.layers.map((_, row) => row).filter(row => !used.has(row));
  return {...view, groups: [...groups, {kind: '', rows: rest}].filter(group => group.rows.length)};
}

function drawNow(box, view, actions) {
  const {level, title, items} = view.now, most = 3;
  box.className = `esd-now esd-${level}`;
  fill(box, el('h2', {textContent: level === 'quiet' ? `✓ ${title}` : `⚠ ${title}`}),
    ...items.slice(0, most).map(item => el('button', {type: 'button', className: `esd-item esd-${item.severity}`,
      onclick: () => item.layer && actions.choose(item.layer, item.since)},
    el('b', {textContent: item.title}), el('span', {textContent: item.text}), ...layerLines(item))),
    items.length > most ? el('p', {className: 'esd-mute', textContent: `and ${items.length - most} more, listed below`}) : null);
}

// What an alert on several layers has found in each of them.
function layerLines(alert) {
  return (alert.lines || []).map(line => el('span', {className: 'esd-line', textContent: line}));
}

// A small square in the colour of a phase, with what its letter needs to be read.
function swatch(state) {
  return {style: {background: fillOf(state, {line: 'var(--line)'}) || 'transparent', color: state.colour ? '#fff' : 'var(--mute)'}};
}

function drawLegend(box, ...views) {
  const used = new Set(views.filter(Boolean).flatMap(view => view.rows.flatMap(codes => [...new Set(codes)])));
  fill(box, ...STATES.filter(state => PHASES.includes(state) || used.has(state.code)).map(state =>
    el('span', {className: used.has(state.code) ? '' : 'esd-unused'},
      el('i', {textContent: state.letter, ...swatch(state)}), state.name)),
  ...['warning', 'error'].map(severity => el('span', {},
    el('i', {className: 'esd-mark', textContent: '▼', style: {color: SEVERITIES[severity]}}), severity)),
  el('span', {}, el('i', {className: 'esd-mark', textContent: '▽'}), 'resolved'));
}

function drawPlayer(parts, state) {
  const {selected, frames, otherFrames} = state;
  parts.title.textContent = `Spectrum of ${selected.layer}`;
  parts.play.textContent = state.timer ? '⏸' : '▶';
  const count = frames ? frames.steps.length : 0;
  parts.play.disabled = parts.slider.disabled = count < 2;
  if (!count) {
    parts.player.replaceChildren(el('p', {className: 'esd-empty', textContent: frames
      ? 'No spectrum of this layer is stored: it has no reading with numbers yet, or the run is of an older version, '
        + 'or the report had no room for it.' : 'Loading …'}));
    parts.key.replaceChildren();
    parts.words.textContent = '';
    return;
  }
  const index = lastUpTo(frames.steps, selected.step), frame = frames.frames[index], phase = STATE_OF[frame.phase];
  parts.slider.max = count - 1;
  parts.slider.value = index;
  const others = otherFrames && otherFrames.steps.length ? otherFrames : null;
  const other = others && others.frames[lastUpTo(others.steps, selected.step)];
  const limits = esdLimits([...frames.frames, ...(others ? others.frames : [])]);
  const width = Math.max(320, Math.min(620, parts.player.clientWidth || 520));
  parts.player.replaceChildren(drawEsd(frame, limits, width, 300, other));
  const at = frames.steps[index], exact = at === selected.step ? '' : ` (the last spectrum that is stored up to step ${selected.step})`;
  parts.title.textContent = `Spectrum of ${selected.layer} at step ${at}: ${phase ? phase.name : 'unknown phase'}`;
  const alpha = isThere(frame.alpha)
    ? `power law, α = ${withError(frame.alpha, frame.alpha_stderr)}${frame.meaningful ? '' : ', not meaningful'}`
    : 'no power law fitted';
  const key = (name, text) => el('span', {}, el('i', {className: `esd-key-${name}`}), text);
  fill(parts.key, key('bar', 'eigenvalues'),
    frame.bulk_edge && noiseCurve(frame).length ? key('noise', 'noise that fits the bulk, and its edge') : null,
    key(frame.meaningful ? 'fit' : 'fit-dashed', alpha), frame.top && frame.top.length
      ? key('rug', `the largest, one by one${frame.n_spikes ? `; ${frame.n_spikes} too large for noise` : ''}`) : null,
    other ? key('other', `${state.other}, at its step ${others.steps[lastUpTo(others.steps, selected.step)]}`) : null);
  const zeros = frame.zeros ? `${frame.zeros === 1 ? '1 eigenvalue is' : `${frame.zeros} eigenvalues are`} exactly zero and not drawn. ` : '';
  parts.words.textContent = `${zeros}${frame.explanation || ''}${exact}`;
}

function drawMeasures(parts, state, domain) {
  const names = [...state.lines.keys()], others = state.otherLines;
  const series = names.flatMap((name, k) => [
    {name, colour: LINE_COLOURS[k % LINE_COLOURS.length], dash: [], lines: state.lines.get(name)},
    ...(others.has(name) ? [{name: `${name}, ${state.other}`, colour: LINE_COLOURS[k % LINE_COLOURS.length], dash: [6, 3],
      lines: others.get(name)}] : [])]);
  parts.lineKey.replaceChildren(...series.map(each => el('span', {},
    el('i', {style: {background: each.colour, height: each.dash.length ? '2px' : '4px'}}), each.name)),
  el('span', {className: 'esd-mute', textContent: 'dotted: pure noise. Shift-click a row to add a layer.'}));
  if (!series.length) return parts.lines.replaceChildren();
  const room = parts.lines.clientWidth || 640, width = Math.min(420, room < 520 ? room : (room - 16) / 2);
  parts.lines.replaceChildren(...LINE_CHARTS.map(chart => {
    const drawn = drawLines(chart, series, domain, state.selected.step, width, 128);
    if (!drawn) return null;
    const {steps, values} = series[0].lines, at = lastUpTo(steps, state.selected.step);
    const value = (values[chart.key] || [])[at], spread = chart.spread && (values[chart.spread] || [])[at];
    const noise = chart.nullKey && (values[chart.nullKey] || [])[at];
    const text = `${spread ? withError(value, spread) : shown(value, 4)}${noise ? `, noise ${shown(noise)}` : ''}`;
    return el('figure', {}, el('figcaption', {title: chart.hint || ''}, el('b', {textContent: chart.title}), ` ${text}`), drawn);
  }).filter(Boolean));
}

function severityWord(severity) {
  return severity === 'info' ? 'notice' : severity;
}

function drawAlerts(box, view, actions) {
  if (!view.alerts.length) {
    fill(box, el('p', {className: 'esd-mute', textContent: 'No alert has fired in this run.'}));
    return;
  }
  const rows = [...view.alerts].reverse().map(alert => el('button', {type: 'button', className: `esd-item esd-${alert.state
    === 'resolved' ? 'resolved' : alert.severity}`, onclick: () => alert.layer && actions.choose(alert.layer, alert.step)},
  el('b', {textContent: `step ${alert.step}  ${alert.state === 'resolved' ? 'resolved' : severityWord(alert.severity)}  `
    + `${alert.rule.replaceAll('_', ' ')}  ${alert.layer || 'the whole run'}`
    + (alert.layers.length > 1 ? ` and ${alert.layers.length - 1} more` : '')}),
  el('span', {textContent: alert.message}), ...layerLines(alert)));
  const left = view.alerts_left_out;
  fill(box, ...rows, left ? el('p', {className: 'esd-mute', textContent: `${left} earlier ones are left out.`}) : '');
}

function drawTable(box, view, selected, actions) {
  const head = ['layer', 'N × M', 'phase', 'since step', 'alpha', 'soft rank', 'spikes', 'stable rank', 'read at step'];
  const body = view.groups.flatMap(group => group.rows).map(row => {
    const layer = view.layers[row], last = view.last[layer.name] || {}, codes = view.rows[row], phase = STATE_OF[codes.at(-1)];
    let since = codes.length - 1;
    while (since > 0 && codes[since - 1] === codes.at(-1)) since--;
    const spread = withError(last.alpha, last.alpha_stderr);
    const alpha = !isThere(last.alpha) || last.alpha_is_meaningful ? spread : `(${spread})`;
    const cells = [layer.M ? `${layer.N} × ${layer.M}${layer.slices > 1 ? ` × ${layer.slices}` : ''}` : '–', null,
      view.steps[since], alpha, shown(last.mp_soft_rank), shown(last.n_spikes), shown(last.stable_rank),
      last.step === undefined ? '–' : last.step];
    return el('tr', {className: selected && selected.layer === layer.name ? 'esd-selected' : '',
      onclick: () => actions.choose(layer.name, last.step ?? view.steps.at(-1))},
    el('th', {scope: 'row', textContent: layer.name}), ...cells.map(text => text === null
      ? el('td', {}, el('i', phase ? swatch(phase) : {}), phase ? phase.name : '')
      : el('td', {textContent: text})));
  });
  fill(box, el('table', {}, el('thead', {}, el('tr', {}, ...head.map(text => el('th', {textContent: text})))),
    el('tbody', {}, ...body)), el('p', {className: 'esd-mute',
    textContent: 'phase: that of the last reading alone; (alpha) in parentheses: no power-law tail that can be distinguished from noise'}));
}
