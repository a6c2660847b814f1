// A terminal on the WebSocket of the API: binary messages are its bytes, text messages its size and its end.
"use strict";
(() => {
  // xterm.js writes its styles into elements, which the policy of the pages forbids. It gets elements that show nothing instead, whose
  // text goes into a sheet that this script holds: that is no style of the page.
  const make = document.createElement.bind(document);
  document.createElement = (name, options) => {
    if (String(name).toLowerCase() !== "style") return make(name, options);
    const sheet = new CSSStyleSheet();
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
    const element = make("template");
    Object.defineProperty(element, "textContent", { set: (text) => sheet.replaceSync(text) });
    return element;
  };

  const place = document.getElementById("terminal");
  const state = document.getElementById("terminal-state");
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const theme = () => (scheme.matches
    ? { background: "#16181b", foreground: "#e6e6e3", cursor: "#e6e6e3", selectionBackground: "#3a4a63" }
    : { background: "#ffffff", foreground: "#23262b", cursor: "#23262b", selectionBackground: "#cfd8e6" });
  const terminal = new Terminal({
    cursorBlink: true,
    fontFamily: "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace",
    fontSize: 14,
    screenReaderMode: true,
    theme: theme(),
  });
  scheme.addEventListener("change", () => { terminal.options.theme = theme(); });
  const fit = new FitAddon.FitAddon();
  terminal.loadAddon(fit);
  terminal.open(place);
  fit.fit();
  // The keyboard can leave it.
  terminal.attachCustomKeyEventHandler((event) => {
    if (event.ctrlKey && event.shiftKey && event.code === "KeyM") {
      if (event.type === "keydown") document.querySelector("nav.tabs a").focus();
      return false;
    }
    return true;
  });

  const protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const url = `${protocol}//${location.host}${place.dataset.socket}&rows=${terminal.rows}&cols=${terminal.cols}`;
  const socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  const bytes = new TextEncoder();
  let ended = false;
  socket.onopen = () => {
    state.textContent = "Connected";
    terminal.focus();
  };
  socket.onmessage = (event) => {
    if (event.data instanceof ArrayBuffer) {
      terminal.write(new Uint8Array(event.data));
      return;
    }
    const message = JSON.parse(event.data);
    if (message.exit) {
      ended = true;
      state.textContent = message.exit.error || `The shell ended (exit code ${message.exit.exitCode}). Load the page again for another one.`;
    }
  };
  socket.onclose = () => {
    if (!ended) state.textContent = "The connection ended. Load the page again for another terminal.";
  };
  terminal.onData((text) => { if (socket.readyState === WebSocket.OPEN) socket.send(bytes.encode(text)); });
  terminal.onBinary((text) => {
    if (socket.readyState === WebSocket.OPEN) socket.send(Uint8Array.from(text, (letter) => letter.charCodeAt(0)));
  });
  terminal.onResize(({ rows, cols }) => {
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ resize: { rows, cols } }));
  });
  new ResizeObserver(() => fit.fit()).observe(place);
})();
