"use strict";
// Sets the chosen colours before anything is drawn; "" is the system's choice. Storage may be forbidden: then
// the choice lasts as long as the page.
const theme = {
  read() {
    try {
      return localStorage.getItem("fastdllm-theme") ?? "";
    } catch {
      return "";
    }
  },
  choose(name) {
    document.documentElement.dataset.theme = name;
    try {
      localStorage.setItem("fastdllm-theme", name);
    } catch {
      // not kept
    }
  },
};
document.documentElement.dataset.theme = theme.read();
document.addEventListener("DOMContentLoaded", () => {
  const picker = document.getElementById("theme");
  picker.value = document.documentElement.dataset.theme;
  picker.addEventListener("change", () => theme.choose(picker.value));
});
