// The search page: the state of a search is in the address and the history, the page shows it.

const find = (id) => document.getElementById(id);
const form = find("search"), file = find("file"), where = find("where"), count = find("count");
const results = find("results"), status = find("status"), errorBox = find("error"), template = find("result");
const TOKEN = "indistill-token", TITLE = document.title;
const THUMBNAIL = 320; // pixels: sharp on a dense screen

const uploads = new Map(); // number in the history -> file, until the page is left
let lastUpload = 0;
let search = null; // the AbortController of the search that runs
let limits = { max_upload_bytes: Infinity };
let pictures = []; // object URLs of what is shown

// --- the server

class Failure extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

async function ask(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The server does not answer. Is it still running?", "offline");
    }
    if (answer.ok) return answer;
    const { error } = await answer.json().catch(() => ({ error: null }));
    if (answer.status !== 401) throw new Failure(error?.message ?? `The server answered ${answer.status}.`, error?.code);
    await askForToken(token);
  }
}

let asking = null; // one dialog for all requests that wait for a token

function askForToken(refused) {
  if (sessionStorage.getItem(TOKEN) !== refused) return Promise.resolve(); // entered meanwhile
  asking ??= new Promise((resolve) => {
    const dialog = find("token-dialog");
    if (refused) find("token-reason").textContent = "The server does not know this token. Enter another one.";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    find("token-form").onsubmit = () => {
      sessionStorage.setItem(TOKEN, find("token").value.trim());
      find("token").value = "";
      asking = null;
      resolve();
    };
    if (!dialog.open) dialog.showModal();
  });
  return asking;
}

// --- pictures

function forgetPictures() {
  pictures.forEach((url) => URL.revokeObjectURL(url));
  pictures = [];
}

async function show(image, path) {
  image.addEventListener("load", () => image.classList.add("there"), { once: true });
  image.addEventListener("error", () => image.parentElement.classList.add("gone"), { once: true });
  if (!sessionStorage.getItem(TOKEN)) {
    image.src = path;
    return;
  }
  try { // an <img> cannot send the token
    const url = URL.createObjectURL(await (await ask(path)).blob());
    pictures.push(url);
    image.src = url;
  } catch {
    image.parentElement.classList.add("gone");
  }
}

const whenSeen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    whenSeen.unobserve(target);
    show(target, target.dataset.path);
  }
}, { rootMargin: "400px" });

function splitPath(path) {
  const cut = path.lastIndexOf("/");
  return [path.slice(cut + 1), path.slice(0, Math.max(cut, 0))];
}

/** Writes a file's name so that a long one breaks where its words do. */
function writeName(element, name) {
  const parts = name.split(/(?<=[_\-+ ])|(?=\.)/);
  element.replaceChildren(...parts.flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part])));
}

// --- what is shown

function showError(title, message) {
  errorBox.replaceChildren();
  const strong = document.createElement("strong");
  strong.textContent = title;
  errorBox.append(strong, " ", message);
  errorBox.hidden = false;
}

function clearError() {
  errorBox.hidden = true;
  where.removeAttribute("aria-invalid");
}

/** Shows hits, or items of the catalogue, which have no score. */
function showHits(hits) {
  results.replaceChildren(...hits.map((hit) => {
    const entry = template.content.cloneNode(true), link = entry.querySelector("a"), image = entry.querySelector("img");
    const [name, folder] = splitPath(hit.path), score = hit.score?.toFixed(3);
    link.href = makeAddress({ id: hit.id });
    link.dataset.id = hit.id;
    link.title = hit.path;
    const facts = [hit.path, score && `score ${score}`, hit.label].filter(Boolean).join(", ");
    link.setAttribute("aria-label", `${facts}. Search by this image`);
    writeName(entry.querySelector(".name"), name);
    entry.querySelector(".score").textContent = score ?? "";
    entry.querySelector(".place").textContent = folder || hit.label || "";
    image.dataset.path = `/images/${hit.id}?size=${THUMBNAIL}`;
    whenSeen.observe(image);
    return entry;
  }));
}

function showPlaceholders(number) {
  results.replaceChildren(...Array.from({ length: number }, () => {
    const entry = document.createElement("li"), frame = document.createElement("span");
    entry.className = "waiting";
    entry.setAttribute("aria-hidden", "true");
    frame.className = "frame";
    entry.append(frame);
    return entry;
  }));
}

function showAsked(kind, path, source) {
  const image = find("asked-image"), [name, folder] = splitPath(path);
  find("asked").hidden = false;
  document.body.classList.add("asking");
  find("asked-kind").textContent = kind;
  writeName(find("asked-name"), name);
  find("asked-place").textContent = folder;
  image.alt = `Query: ${name}`;
  document.title = `${name} – ${TITLE}`;
  image.onerror = () => { image.removeAttribute("src"); };
  source(image);
}

/** Shows what the index begins with, to start from. */
async function showStart() {
  search?.abort();
  const { signal } = search = new AbortController();
  find("asked").hidden = true;
  document.body.classList.remove("asking");
  document.title = TITLE;
  results.replaceChildren();
  results.removeAttribute("aria-busy");
  status.textContent = "";
  try {
    const page = await (await ask(`/items?limit=${count.value}`, { signal })).json();
    showHits(page.items);
    status.textContent = "Some images of the index: choose one to search by it";
  } catch (error) {
    if (error.name !== "AbortError") showError("The index cannot be shown.", error.message);
  }
}

// --- searching

function makeAddress(wanted) {
  const parameters = new URLSearchParams();
  if (wanted.id != null) parameters.set("id", wanted.id);
  if (where.value.trim()) parameters.set("where", where.value.trim());
  if (count.value !== "24") parameters.set("k", count.value);
  const text = parameters.toString();
  return text ? `/?${text}` : "/";
}

/** Goes to a search: it becomes an entry of the history, and is run. */
function go(wanted) {
  history.pushState({ upload: wanted.upload ?? null, depth: (history.state?.depth ?? 0) + 1 }, "", makeAddress(wanted));
  run();
}

/** Runs the search that the address and the history name. */
async function run() {
  const parameters = new URLSearchParams(location.search), upload = uploads.get(history.state?.upload);
  const id = parameters.get("id");
  where.value = parameters.get("where") ?? "";
  const k = parameters.get("k") ?? "24";
  count.value = [...count.options].some((option) => option.value === k) ? k : "24";
  clearError();
  forgetPictures();
  if (id === null && !upload) {
    showStart();
    if (history.state?.upload != null) showError("This image is not kept.", "Choose it again to search by it.");
    return;
  }
  search?.abort();
  const mine = search = new AbortController();
  const number = Number(count.value), started = performance.now();
  // the image itself would be the first result of a search by id
  const query = new URLSearchParams({ k: id === null ? number : number + 1 });
  if (where.value) query.set("where", where.value);
  const options = { method: "POST", signal: mine.signal };
  if (id !== null) {
    options.body = JSON.stringify({ id: Number(id) });
    options.headers = { "Content-Type": "application/json" };
    nameAsked(id, mine.signal);
  } else {
    options.body = new FormData();
    options.body.append("image", upload, "image");
    showAsked("Your image", upload.name || "Pasted image", (image) => {
      const url = URL.createObjectURL(upload);
      pictures.push(url);
      image.src = url;
    });
  }
  status.textContent = "Searching…";
  results.setAttribute("aria-busy", "true");
  if (!results.children.length) showPlaceholders(number);
  try {
    const answer = await (await ask(`/search?${query}`, options)).json();
    const hits = answer.hits.filter((hit) => String(hit.id) !== id).slice(0, number);
    const wasWithin = results.contains(document.activeElement);
    showHits(hits);
    if (wasWithin) (results.querySelector("a") ?? results).focus({ preventScroll: true }); // the keyboard goes on there
    const seconds = ((performance.now() - started) / 1000).toFixed(2);
    const amount = hits.length === 1 ? "1 result" : `${hits.length} results`;
    status.textContent = hits.length ? `${amount} in ${seconds} s, most alike first` : "Nothing fits. Try another filter.";
    results.removeAttribute("aria-busy");
  } catch (error) {
    if (error.name === "AbortError") return; // a later search has taken over
    results.replaceChildren();
    results.removeAttribute("aria-busy");
    status.textContent = "";
    if (error.code === "bad_request") where.setAttribute("aria-invalid", "true");
    const titles = { bad_request: "The filter cannot be used.", busy: "The server is busy.", too_many_requests: "Too fast." };
    showError(titles[error.code] ?? "The search failed.", error.message);
  }
}

async function nameAsked(id, signal) {
  try {
    const item = await (await ask(`/items/${encodeURIComponent(id)}`, { signal })).json();
    showAsked(item.label ? `In the index: ${item.label}` : "In the index", item.path, (image) => show(image, `/images/${item.id}?size=512`));
  } catch { /* the search says what is wrong */ }
}

/** Searches by a file of the user, if it can be one. */
function searchByFile(chosen) {
  if (!chosen) return;
  if (chosen.size > limits.max_upload_bytes) {
    const [size, limit] = [chosen.size, limits.max_upload_bytes].map((bytes) => (bytes / 1e6).toFixed(1));
    clearError();
    showError("The image is too large.", `It has ${size} MB, the limit is ${limit} MB.`);
    return;
  }
  if (chosen.type && !chosen.type.startsWith("image/")) {
    clearError();
    showError("This is not an image.", `“${chosen.name}” is ${chosen.type}. Choose a JPEG, PNG, WebP, GIF, BMP or TIFF file.`);
    return;
  }
  uploads.set(++lastUpload, chosen);
  go({ upload: lastUpload });
}

function searchAgain() {
  const id = new URLSearchParams(location.search).get("id"), upload = history.state?.upload;
  if (id === null && !uploads.has(upload)) {
    clearError();
    showError("No image yet.", "Choose, drop or paste one first.");
    file.focus();
    return;
  }
  go(id !== null ? { id } : { upload });
}

// --- the user

file.addEventListener("change", () => {
  searchByFile(file.files[0]);
  file.value = ""; // the same file may be chosen again
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  searchAgain();
});
count.addEventListener("change", () => {
  if (!find("asked").hidden) searchAgain();
});
results.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return;
  event.preventDefault();
  go({ id: link.dataset.id });
  scrollTo({ top: 0 });
});
find("home").addEventListener("click", (event) => {
  event.preventDefault();
  where.value = "";
  go({});
});
addEventListener("popstate", run);

document.addEventListener("paste", (event) => {
  const [pasted] = event.clipboardData.files;
  if (!pasted) return;
  event.preventDefault();
  searchByFile(pasted);
});
let depth = 0; // of the elements that are being dragged over
document.addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++depth > 0));
document.addEventListener("dragleave", () => document.body.classList.toggle("dragging", --depth > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dragging");
  searchByFile(event.dataTransfer.files[0]);
});

/** The number of columns of the grid, to go up and down. */
function countColumns() {
  return getComputedStyle(results).gridTemplateColumns.split(" ").length;
}

document.addEventListener("keydown", (event) => {
  if (find("token-dialog").open || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Escape") {
    if (event.target === where && where.value) where.value = "";
    else if ((history.state?.depth ?? 0) > 0) history.back();
    return;
  }
  const links = [...results.querySelectorAll("a")], place = links.indexOf(document.activeElement);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -countColumns(), ArrowDown: countColumns() };
  if (place < 0 || !(event.key in steps)) return;
  const next = links[place + steps[event.key]];
  if (next) {
    event.preventDefault();
    next.focus();
  }
});

// --- the start

async function describe() {
  try {
    limits = await (await ask("/index")).json();
    const images = limits.items === 1 ? "1 image" : `${limits.items.toLocaleString("en")} images`;
    find("index").textContent = images;
  } catch (error) {
    showError("The index cannot be reached.", error.message);
  }
}

await describe();
run();
