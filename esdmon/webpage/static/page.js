// The page: what is wrong now, the map, the player, the lines, the alerts and the table; and what connects them.

const MOST_LAYERS = 5; // with lines at once

async function mount(root, source, {poll = 0} = {}) {
  const state = {run: null, other: '', view: null, otherView: null, selected: null, compared: [], ...nothingFetched(),
    timer: 0, follows: true};
  const parts = buildPage(source);
  parts.refresh.hidden = !poll;
  root.replaceChildren(parts.page);
  followTheme(parts.page, () => state.view && draw());
  const status = window.__esd = {ready: false, state, place: (layer, step) => parts.map.firstChild.place(layer, step)};

  const guarded = action => async (...values) => {
    try {
      await action(...values);
      parts.error.hidden = true;
    } catch (error) {
      const again = poll ? ' It is tried again by itself.' : '';
      parts.error.textContent = `The data could not be loaded (${error.message}).${again}`;
      parts.error.hidden = false;
    }
  };

  // Loads what is shown of the selected layers, of both runs.
  const fetchSelected = async () => {
    const {run, other, selected, compared} = state;
    if (!selected) return;
    const layers = [selected.layer, ...compared.filter(name => name !== selected.layer)].slice(0, MOST_LAYERS);
    const of = async (which, view) => which && view ? Promise.all(layers.filter(name => view.layers
      .some(layer => layer.name === name)).map(async name => [name, await source.lines(which, name)])) : [];
    const frames = (which, view) => which && view ? source.frames(which, selected.layer) : null;
    const [own, others, spectra, otherSpectra] = await Promise.all([
      of(run, state.view), of(other, state.otherView), frames(run, state.view), frames(other, state.otherView)]);
    if (state.selected.layer !== selected.layer || state.run !== run) return; // another was chosen meanwhile
    Object.assign(state, {lines: new Map(own), otherLines: new Map(others), frames: spectra, otherFrames: otherSpectra});
  };

  const draw = () => drawPage(parts, state, actions);
  const choose = guarded(async (layer, step, {add = false} = {}) => {
    const before = state.selected && state.selected.layer;
    if (add && before && layer !== before) {
      state.compared = [before, ...state.compared.filter(name => name !== before && name !== layer)];
    } else if (!add && !state.compared.includes(layer)) state.compared = [];
    if (layer !== before) Object.assign(state, nothingFetched());
    state.selected = {layer};
    setStep(step);
    await fetchSelected();
    draw();
    status.ready = loading === 0;
  });
  const setStep = step => {
    state.selected.step = step;
    state.follows = state.view.steps.length > 0 && step >= state.view.steps.at(-1);
    draw();
  };
  let loading = 0; // loads under way: an earlier one that ends late does not make the page ready
  const load = guarded(async () => {
    loading += 1;
    status.ready = false;
    try {
      await loadRun();
    } finally {
      loading -= 1;
      status.ready = loading === 0;
    }
  });
  const loadRun = async () => {
    stop();
    const {run, other} = state;
    const view = run === null ? null : await source.overview(run);
    const otherView = other ? await source.overview(other) : null;
    if (state.run !== run || state.other !== other) return; // another was chosen meanwhile
    Object.assign(state, {view, otherView, ...nothingFetched()});
    if (state.view && state.view.layers.length) {
      const first = startingPoint(state.view, state.selected);
      await choose(first.layer, first.step);
    } else draw();
    Object.assign(status, {run, other});
  };
  const refresh = guarded(async () => {
    await listRuns();
    if (state.run === null) return draw();
    if (!state.view || !state.view.layers.length) return load();
    const changed = await advance(source, state.run, state.view);
    const otherChanged = state.otherView && await advance(source, state.other, state.otherView);
    if (changed) state.view = changed;
    if (otherChanged) state.otherView = otherChanged;
    if (!changed && !otherChanged) return;
    if (!state.view.layers.some(layer => layer.name === state.selected.layer)) return load();
    if (state.follows) state.selected.step = state.view.steps.at(-1);
    await fetchSelected();
    draw();
  });
  const listRuns = async () => {
    const runs = await source.runs();
    fillRuns(parts, runs, state);
    if (state.run === null && runs.length) {
      state.run = source.first(runs);
      parts.run.value = state.run;
      await load();
    }
  };
  const stop = () => {
    clearInterval(state.timer);
    state.timer = 0;
  };
  const move = by => {
    const steps = state.frames ? state.frames.steps : [];
    const next = steps[lastUpTo(steps, state.selected.step) + by];
    if (next !== undefined) setStep(next);
    return next !== undefined;
  };
  const play = () => {
    if (state.timer) stop();
    else {
      const steps = state.frames ? state.frames.steps : [];
      if (lastUpTo(steps, state.selected.step) >= steps.length - 1 && steps.length) setStep(steps[0]);
      state.timer = setInterval(() => {
        if (!move(1)) stop();
        draw();
      }, 180);
    }
    draw();
  };
  const moveLayer = by => {
    const order = namesInOrder(state.view);
    const next = order[order.indexOf(state.selected.layer) + by];
    if (next) choose(next, state.selected.step);
  };
  const actions = {choose, setStep, refresh, move, load, play, moveLayer};
  connect(parts, actions, state);
  await guarded(listRuns)();
  if (state.run === null) draw();
  status.ready = true;
  if (poll) {
    let isBusy = false;
    setInterval(async () => {
      if (document.visibilityState !== 'visible' || state.timer || isBusy) return;
      isBusy = true;
      await refresh();
      isBusy = false;
    }, poll);
  }
}

// What is shown of the selected layers before it is loaded.
const nothingFetched = () => ({lines: new Map(), otherLines: new Map(), frames: null, otherFrames: null});

// Brings a view up to date: null where nothing is new.
async function advance(source, run, view) {
  const news = await source.overview(run, view.cursor || '');
  if (news.unchanged || !view.cursor) return null;
  if (!news.append) return news;
  const rows = view.rows.map((codes, row) => codes + news.rows[row]);
  return {...news, steps: [...view.steps, ...news.steps], rows};
}

// The layer and step to begin with: as before, else the most severe alert, else the last step of the first row.
function startingPoint(view, before) {
  const last = view.steps.at(-1) ?? 0, isKnown = name => view.layers.some(layer => layer.name === name);
  if (before && isKnown(before.layer)) return {layer: before.layer, step: Math.min(before.step, last)};
  const worst = view.now.items.find(item => isKnown(item.layer)) || view.alerts.findLast(alert => isKnown(alert.layer));
  const names = namesInOrder(view);
  const moved = names.find(name => view.rows[view.layers.findIndex(layer => layer.name === name)].at(-1) !== '-');
  return {layer: worst ? worst.layer : moved || names[0], step: last};
}

function followTheme(page, redraw) {
  const outer = () => {
    try { return parent === window ? null : parent.document.body; } catch { return null; }
  };
  const media = matchMedia('(prefers-color-scheme: dark)');
  const apply = () => {
    const body = outer();
    document.body.classList.toggle('dark', body ? body.classList.contains('dark-mode') : media.matches);
    redraw();
  };
  apply();
  media.addEventListener('change', apply);
  const body = outer();
  if (body) new MutationObserver(apply).observe(body, {attributes: true, attributeFilter: ['class']});
}
