// The page's side of a Panel (panel.py). It knows nothing of what is shown: Python renders HTML, a region at a time;
// this patches it into the page in place, and sends back what the user does with elements that have a data-action.

const HTML = "html_"; // before a region's name: the trait with its HTML
const PAUSE_MS = 120; // a slider that moves acts when it rests so long, and when it is let go
const GREET_MS = 500; // before the first hello is said again
const LAST_GREET_MS = 300_000; // who has not answered by then is not there

// --------------------------------------------------------------------------------------------- patching

// What the server last said of each field: a field is set again only when the server says something new, so that
// what the user has typed and not sent yet stays.
const told = new WeakMap();

const isField = (node) => node instanceof Element && node.matches("input, select, textarea");
const isSwitch = (field) => field.type === "checkbox" || field.type === "radio";
const chosen = (select) => [...select.selectedOptions].map((option) => option.value);

function stateOf(field) {
  if (isSwitch(field)) return String(field.checked);
  return field.localName === "select" ? JSON.stringify(chosen(field)) : field.value;
}

function setState(field, wanted) {
  const state = stateOf(wanted);
  if (told.get(field) === state) return;
  told.set(field, state);
  if (isSwitch(field)) field.checked = wanted.checked;
  else if (field.localName === "select") [...field.options].forEach((o, i) => (o.selected = wanted.options[i].selected));
  else field.value = wanted.value;
}

const keyOf = (node) => (node instanceof Element ? node.getAttribute("data-key") : null);
const kindOf = (node) => `${node.nodeName} ${keyOf(node) ?? ""}`;

// Make the children of `old` those of `fresh`. Nodes of the same kind and data-key are changed in place; unkeyed ones
// are matched in order. Only what is new is made, and only what is out of order moves.
function patch(old, fresh, active) {
  const waiting = new Map();
  for (const node of old.childNodes) {
    const kind = kindOf(node);
    waiting.has(kind) ? waiting.get(kind).push(node) : waiting.set(kind, [node]);
  }
  const wanted = [...fresh.childNodes];
  const matches = wanted.map((node) => waiting.get(kindOf(node))?.shift());
  for (const nodes of waiting.values()) nodes.forEach((node) => node.remove());
  let place = old.firstChild;
  wanted.forEach((node, i) => {
    const match = matches[i];
    if (match) morph(match, node, active);
    const placed = match ?? adopt(node);
    if (placed === place) place = place.nextSibling;
    else old.insertBefore(placed, place);
  });
}

function adopt(node) {
  const made = document.importNode(node, true);
  if (made instanceof Element) for (const one of [made, ...made.querySelectorAll("*")]) if (isField(one)) told.set(one, stateOf(one));
  return made;
}

function morph(node, wanted, active) {
  if (!(node instanceof Element)) {
    if (node.data !== wanted.data) node.data = wanted.data;
    return;
  }
  if (node === active && isField(node)) return; // in use; it is looked at again when the focus leaves it
  for (const { name, value } of wanted.attributes) {
    if (node.getAttribute(name) !== value && !isOwn(node, name)) node.setAttribute(name, value);
  }
  for (const { name } of [...node.attributes]) {
    if (!wanted.hasAttribute(name) && !isOwn(node, name)) node.removeAttribute(name);
  }
  patch(node, wanted, active);
  if (isField(node)) setState(node, wanted);
}

// What belongs to the user: whether a <details> is open.
const isOwn = (node, name) => name === "open" && node.localName === "details";

// --------------------------------------------------------------------------------------------- acting

// All named fields of the enclosing [data-form]: a text each; a list for checkboxes and multiple selects.
function fieldsOf(element) {
  const fields = {};
  for (const field of element.closest("[data-form]")?.querySelectorAll("[name]") ?? []) {
    if (field.type === "radio" && !field.checked) continue;
    if (field.type === "checkbox") (fields[field.name] ??= []).push(...(field.checked ? [field.value] : []));
    else fields[field.name] = field.multiple ? chosen(field) : field.value;
  }
  return fields;
}

function valueOf(element) {
  return element.type === "checkbox" ? String(element.checked) : (element.value ?? null);
}

function listen(root, send) {
  let timer;
  const act = (element) => {
    clearTimeout(timer);
    const target = element.closest("[data-target]")?.dataset.target ?? null;
    send({ name: element.dataset.action, value: valueOf(element), target, fields: fieldsOf(element) });
  };
  const acting = (event, selector) => event.target.closest?.(selector);
  root.addEventListener("click", (event) => {
    const button = acting(event, "[data-action]");
    if (button && !isField(button) && button.localName !== "form") act(button);
  });
  root.addEventListener("change", (event) => {
    if (isField(event.target) && event.target.dataset.action) act(event.target);
  });
  root.addEventListener("input", (event) => {
    const slider = acting(event, "input[type=range][data-action]");
    if (!slider) return;
    clearTimeout(timer);
    timer = setTimeout(() => act(slider), PAUSE_MS);
  });
  root.addEventListener("submit", (event) => {
    event.preventDefault();
    if (event.target.dataset.action) act(event.target);
  });
  // A browser submits a form at Enter in a one-line field; in a text area, Enter begins a line.
  root.addEventListener("keydown", (event) => {
    const sends = event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.localName === "textarea";
    if (sends) event.target.closest("form[data-action]")?.requestSubmit();
  });
}

// ---------------------------------------------------------------------------------------------- the view

function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

function add(parent, tag, attributes) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return parent.appendChild(made);
}

function render({ model, el }) {
  const root = add(el, "section", { class: "txlab-panel txlab", "aria-label": model.get("label") });
  const notice = add(root, "div", { class: "txlab-notice", role: "status", "aria-live": "polite" });
  const showNotice = () => (notice.textContent = model.get("notice"));
  model.on("change:notice", showNotice);
  showNotice();

  const draws = model.get("regions").map((name) => {
    const region = add(root, "div", { class: `txlab-region txlab-${name}` });
    const draw = () => {
      const active = root.getRootNode().activeElement;
      patch(region, parse(model.get(HTML + name)), active);
      // A row that moved takes the focus along.
      if (region.contains(active) && root.getRootNode().activeElement !== active) active.focus({ preventScroll: true });
    };
    model.on(`change:${HTML}${name}`, draw);
    draw();
    return draw;
  });
  root.addEventListener("focusout", () => setTimeout(() => draws.forEach((draw) => draw())));
  listen(root, (action) => model.send({ action }));

  // Python draws regions only while somebody looks. A hello may be lost on its way, or wait behind a running cell where
  // the kernel has no subshells: it is said again until Python answers, and until then the picture is shown.
  const view = Math.random().toString(36).slice(2);
  const controller = new AbortController();
  const say = (message) => {
    try {
      model.send(message);
    } catch {
      // The kernel is away for the moment.
    }
  };
  const leave = () => say({ bye: view });
  let greeting;
  const greet = (pause) => {
    clearTimeout(greeting);
    say({ hello: view });
    if (pause < LAST_GREET_MS) greeting = setTimeout(greet, pause, 2 * pause);
  };
  model.on("msg:custom", (message) => {
    if (message.welcome !== view) return;
    clearTimeout(greeting);
    root.classList.add("txlab-alive");
  });
  greet(GREET_MS);
  // The kernel was restarted, or the connection to it is there again: it is alive if it answers.
  model.on("comm_live_update", () => {
    root.classList.remove("txlab-alive");
    greet(GREET_MS);
  });
  const { signal } = controller;
  window.addEventListener("pagehide", leave, { signal });
  // Keys on the panel's elements are theirs: arrows move a slider, where JupyterLab would fold the cell. Its commands
  // with a modifier go on.
  const keep = (event) => root.contains(event.target) && !event.ctrlKey && !event.metaKey && event.stopPropagation();
  window.addEventListener("keydown", keep, { capture: true, signal });
  return () => {
    clearTimeout(greeting);
    controller.abort();
    leave();
  };
}

export default { render };
