"use strict";
const $ = (id) => document.getElementById(id);
const shown = 5000;

const token = $("token");
try { token.value = sessionStorage.getItem("custody-token") ?? ""; } catch { /* storage is off */ }
token.addEventListener("change", () => {
  try { sessionStorage.setItem("custody-token", token.value); } catch { /* storage is off */ }
});

function headers(more) {
  const all = { ...more };
  if (token.value) all.authorization = "Bearer " + token.value;
  return all;
}

function say(text, bad) {
  $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

function cell(value) {
  const td = document.createElement("td");
  if (value === null || value === undefined) {
    td.textContent = "none";
    td.className = "null";
  } else {
    td.textContent = typeof value === "object" ? JSON.stringify(value) : String(value);
    if (td.textContent.length > 60) td.className = "long";
  }
  return td;
}

function show(answer) {
  const names = answer.columns.map((column) => column.name);
  const head = document.createElement("thead");
  const titles = head.insertRow();
  for (const name of names) {
    const th = document.createElement("th");
    th.scope = "col";
    th.textContent = name;
    titles.append(th);
  }
  const body = document.createElement("tbody");
  for (const row of answer.rows.slice(0, shown)) {
    body.insertRow().append(...names.map((name) => cell(row[name])));
  }
  $("rows").replaceChildren(head, body);
  let text = answer.row_count + (answer.row_count === 1 ? " row" : " rows");
  if (answer.row_count > shown) text += ", the first " + shown + " of them here; save the answer to see all";
  if (answer.period) {
    text += " · from " + answer.period.from_utc + " to before " + answer.period.to_utc +
      " (days of " + answer.period.time_zone + ")";
  }
  say(text + ".");
  $("completeness").textContent = answer.completeness_line;
}

async function problem(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return error.message + ". " + error.hint;
  } catch {
    return response.status + " " + text;
  }
}

async function ask(url, options) {
  say("Asking …");
  $("rows").replaceChildren();
  $("completeness").textContent = "";
  try {
    const response = await fetch(url, options);
    if (!response.ok) return say(await problem(response), true);
    const answer = await response.json();
    if (!answer.complete) return say("The answer broke off: " + answer.error.message, true);
    show(answer);
  } catch (error) {
    say("The answer broke off or the service is not there (" + error.message + ").", true);
  }
}

function query(format) {
  const fields = new URLSearchParams({ format });
  for (const [name, value] of new FormData($("report"))) if (value) fields.set(name, value);
  return "/v1/reports/phi-access?" + fields;
}

$("report").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(query("json"), { headers: headers() });
});

for (const button of document.querySelectorAll("[data-save]")) {
  button.addEventListener("click", async () => {
    if (!$("report").reportValidity()) return;
    say("Asking …");
    try {
      const response = await fetch(query(button.dataset.save), { headers: headers() });
      if (!response.ok) return say(await problem(response), true);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await response.blob());
      const name = /filename="([^"]+)"/.exec(response.headers.get("content-disposition") ?? "");
      link.download = name ? name[1] : "phi-access." + button.dataset.save;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      say("Saved " + link.download + ".");
    } catch (error) {
      say("The answer broke off (" + error.message + "); nothing was saved.", true);
    }
  });
}

function run(sql) {
  const body = JSON.stringify({ sql, format: "json" });
  ask("/v1/sql", { method: "POST", headers: headers({ "content-type": "application/json" }), body });
}

$("sql").addEventListener("submit", (event) => {
  event.preventDefault();
  run($("statement").value);
});

for (const button of document.querySelectorAll("[data-sql]")) {
  button.addEventListener("click", () => {
    $("statement").value = button.dataset.sql;
    run(button.dataset.sql);
  });
}

const day = (ago) => new Date(Date.now() - ago * 864e5).toISOString().slice(0, 10);
$("report").elements.from.value = day(7);
$("report").elements.to.value = day(0);
