// What the pages do by themselves besides htmx: rows of forms, a boot's output as it comes, uploads, copying. Texts of others are
// only ever set as text.
"use strict";
(() => {
  const proof = document.body.dataset.proof;

  // Rows of a form: added, removed, moved. The order of the rows is the order in which they are sent.
  const rowsOf = (element) => element.closest("form").querySelector("[data-rows]");
  const say = (form, text) => {
    const place = form.querySelector("[data-moved]");
    if (place) place.textContent = text;
  };
  const clear = (row) => {
    for (const field of row.querySelectorAll("input, textarea")) field.value = "";
    for (const field of row.querySelectorAll("select")) field.selectedIndex = 0;
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const row = button.closest("[data-row]");
    if ("add" in button.dataset) {
      const rows = rowsOf(button);
      const added = rows.lastElementChild.cloneNode(true);
      clear(added);
      rows.append(added);
      added.querySelector("input").focus();
    } else if ("remove" in button.dataset) {
      const form = button.closest("form");
      const next = row.nextElementSibling || row.previousElementSibling;
      if (next) {
        row.remove();
        next.querySelector("input").focus();
      } else {
        clear(row);
      }
      say(form, "Removed");
    } else if ("move" in button.dataset) {
      const up = button.dataset.move === "up";
      const other = up ? row.previousElementSibling : row.nextElementSibling;
      if (!other) return;
      if (up) other.before(row);
      else other.after(row);
      button.focus();
      const place = [...row.parentElement.children].indexOf(row) + 1;
      say(button.closest("form"), `Moved to place ${place}`);
    } else if (button.dataset.copy) {
      const text = document.getElementById(button.dataset.copy).textContent;
      navigator.clipboard?.writeText(text).then(() => { button.textContent = "Copied"; });
    }
  });

  // A boot's output as it comes. What was printed before comes first, so a connection that was lost begins anew.
  const MOST = 400000;
  // Colours and what else terminals do, without the text.
  const plain = (text) => text.replace(/\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])/g, "");
  const follow = (section) => {
    const output = section.querySelector("pre");
    const events = new EventSource(section.dataset.events);
    const show = (text) => {
      const atEnd = output.scrollTop + output.clientHeight >= output.scrollHeight - 20;
      output.append(text);
      if (output.textContent.length > MOST) output.textContent = output.textContent.slice(-MOST / 2);
      if (atEnd) output.scrollTop = output.scrollHeight;
    };
    const refresh = () => {
      const steps = document.getElementById("steps");
      if (steps) steps.dispatchEvent(new Event("refresh"));
    };
    const on = (name, act) => events.addEventListener(name, (event) => act(JSON.parse(event.data)));
    events.onopen = () => { output.textContent = ""; };
    on("stepStarted", (event) => {
      show(`── ${event.name}${event.subject ? " " + event.subject : ""}\n`);
      refresh();
    });
    on("commandStarted", (event) => show(`$ ${event.command}\n`));
    on("output", (event) => show(plain(event.text)));
    on("stepEnded", refresh);
    on("ended", (event) => {
      events.close();
      show(event.failureReason ? `── failed: ${event.failureReason}\n` : "── done\n");
      refresh();
    });
  };
  for (const section of document.querySelectorAll("[data-events]")) follow(section);

  // Uploads: the body is the file, whatever its size.
  for (const form of document.querySelectorAll("form[data-upload]")) {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const state = form.querySelector("[data-state]");
      const file = form.querySelector("input[type=file]").files[0];
      if (!file) return;
      const path = form.dataset.folder.replace(/\/+$/, "") + "/" + file.name;
      state.textContent = "Uploading …";
      try {
        const answer = await fetch(`${form.dataset.upload}?path=${encodeURIComponent(path)}`, {
          method: "PUT",
          headers: { "x-hearth-page": proof },
          body: file,
        });
        if (answer.ok) {
          location.reload();
          return;
        }
        const body = await answer.json();
        state.textContent = body.error.message;
      } catch (error) {
        state.textContent = "The upload broke off: " + error;
      }
    });
  }
})();
