"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const ROW = 21, LEAST = 1, TOP = 100;
  const rows = document.getElementById("rows"), search = document.getElementById("search");
  const group = document.getElementById("group"), detail = document.getElementById("detail");
  const found = document.getElementById("found");
  // Nodes come before those that they call, and a node is [caller, name, fuel, samples, places].
  const nodes = data.nodes.map(([parent, name, fuel, samples, places]) => ({
    parent: parent < 0 ? null : parent, name: data.names[name], own: fuel, samples, places, total: fuel, calls: [],
  }));
  const all = { parent: null, name: "all", own: 0, samples: 0, places: [], total: 0, calls: [], group: true };
  for (let at = nodes.length - 1; at >= 0; at--) {
    const node = nodes[at];
    const above = node.parent === null ? all : nodes[node.parent];
    node.above = above;
    node.group = node.parent === null;
    above.total += node.total;
    above.calls.push(node);
  }
  for (const node of [all, ...nodes]) node.calls.sort((one, other) => other.total - one.total);
  let chosen = all;
  const number = value => value.toLocaleString("en");
  const part = (value, whole) => whole ? `${(100 * value / whole).toFixed(value / whole < 0.1 ? 2 : 1)} %` : "0 %";
  const hue = name => {
    let sum = 0;
    for (let at = 0; at < name.length; at++) sum = (sum * 31 + name.charCodeAt(at)) >>> 0;
    return sum % 5;
  };
  const lines = node => node.places.map(([place, fuel]) => [data.names[place], fuel]);
  const matches = (node, words) => words !== "" && (node.name.toLowerCase().includes(words)
    || node.places.some(([place]) => data.names[place].toLowerCase().includes(words)));
  const make = (tag, text, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  };

  const draw = () => {
    const words = search.value.trim().toLowerCase(), width = rows.clientWidth || 1000;
    const path = [];
    for (let node = chosen; node; node = node.above) path.unshift(node);
    const made = [];
    let deepest = path.length, matched = 0;
    const frame = (node, depth, left, wide, more) => {
      const button = make("button", node.name, `frame ${node.group ? "group" : `h${hue(node.name)}`}${more}`);
      button.type = "button";
      button.style.left = `${left}px`;
      button.style.width = `${Math.max(wide - 0.5, 0.5)}px`;
      button.style.top = `${depth * ROW}px`;
      button.title = `${node.name}: ${part(node.total, all.total)} with callees, ${part(node.own, all.total)} itself`;
      if (matches(node, words)) button.classList.add("match");
      else if (words !== "") button.classList.add("dim");
      button.addEventListener("click", () => choose(node));
      made.push(button);
    };
    path.slice(0, -1).forEach((node, depth) => frame(node, depth, 0, width, " above"));
    const waiting = [[chosen, path.length - 1, 0, width]];
    while (waiting.length) {
      const [node, depth, left, wide] = waiting.pop();
      if (wide < LEAST) continue;
      frame(node, depth, left, wide, "");
      deepest = Math.max(deepest, depth + 1);
      let at = left;
      for (const call of node.calls) {
        const size = wide * call.total / node.total;
        waiting.push([call, depth + 1, at, size]);
        at += size;
      }
    }
    const counting = [[chosen, false]];
    while (counting.length) {
      const [node, above] = counting.pop();
      const hit = above || matches(node, words);
      if (hit) matched += node.own;
      for (const call of node.calls) counting.push([call, hit]);
    }
    rows.style.height = `${deepest * ROW}px`;
    rows.replaceChildren(...made);
    found.textContent = words === "" ? "" : matched === 0 ? "nothing is found here"
      : `${part(matched, chosen.total)} of the fuel is burnt in what is found`;
  };

  const choose = node => {
    chosen = node;
    const burnt = make("p", `${number(node.total)} units of fuel with callees (${part(node.total, all.total)}), `
      + `${number(node.own)} itself (${part(node.own, all.total)}), in ${number(node.samples)} samples`, "muted");
    const list = make("ul");
    for (const [place, fuel] of lines(node)) list.append(make("li", `${place}: ${part(fuel, node.total)} of it`));
    detail.replaceChildren(make("p", node.name), burnt, list);
    draw();
  };

  const table = () => {
    const functions = new Map();
    const waiting = [[chosen, new Set()]];
    while (waiting.length) {
      const [node, above] = waiting.pop();
      let seen = above;
      if (!node.group) {
        const row = functions.get(node.name) || { own: 0, total: 0, samples: 0, places: new Map() };
        functions.set(node.name, row);
        row.own += node.own;
        row.samples += node.samples;
        if (!above.has(node.name)) row.total += node.total;
        for (const [place, fuel] of lines(node)) row.places.set(place, (row.places.get(place) || 0) + fuel);
        seen = new Set(above).add(node.name);
      }
      for (const call of node.calls) waiting.push([call, seen]);
    }
    const sorted = [...functions].sort((one, other) => other[1].own - one[1].own || other[1].total - one[1].total);
    document.querySelector("#functions tbody").replaceChildren(...sorted.slice(0, TOP).map(([name, row]) => {
      const line = make("tr");
      const [hottest] = [...row.places].sort((one, other) => other[1] - one[1]);
      line.append(make("td", name, "left"), make("td", part(row.own, all.total)), make("td", part(row.total, all.total)),
        make("td", number(row.samples)), make("td", hottest ? hottest[0] : "", "left"));
      return line;
    }));
  };

  const groups = [all, ...all.calls];
  groups.forEach((node, at) => {
    const option = make("option", node === all ? "all" : `${node.name} (${part(node.total, all.total)})`);
    option.value = at;
    group.append(option);
  });
  group.addEventListener("change", () => { choose(groups[group.value]); table(); });
  search.addEventListener("input", draw);
  document.getElementById("reset").addEventListener("click", () => {
    search.value = "";
    group.value = 0;
    choose(all);
    table();
  });
  window.addEventListener("resize", draw);
  table();
  draw();
})();
