package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sort"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// draw chooses the leaves with the smallest SHA-256 of seed and leaf data.
func draw(seed string, count int, period map[identity][]byte) map[identity][]byte {
	type drawn struct {
		place [32]byte
		id    identity
	}
	var all []drawn
	prefix := "custody-challenge-1\n" + seed + "\n"
	for id, leaf := range period {
		all = append(all, drawn{sha256.Sum256(append([]byte(prefix), leaf...)), id})
	}
	sort.Slice(all, func(i, j int) bool { return bytes.Compare(all[i].place[:], all[j].place[:]) < 0 })
	found := map[identity][]byte{}
	for _, d := range all[:min(count, len(all))] {
		found[d.id] = period[d.id]
	}
	return found
}

// What retention and erasure say.
type lawful struct {
	before uint64
	erased map[string]bool
}

// readLawful reads those of their records that a checkpoint covers.
func readLawful(log deploymentLog, proofs, lines []byte) (lawful, error) {
	found := lawful{erased: map[string]bool{}}
	if proofs == nil && lines == nil {
		return found, nil
	}
	var all []struct {
		Stream      string
		Seq         uint64
		Left, Right []string
	}
	if err := json.Unmarshal(proofs, &all); err != nil {
		return found, wrong("lawful.json", "%v", err)
	}
	split := bytes.Split(bytes.TrimSuffix(lines, []byte("\n")), []byte("\n"))
	if len(split) != len(all) {
		return found, wrong("lawful.jsonl", "%d records, %d proofs", len(split), len(all))
	}
	for i, p := range all {
		place := fmt.Sprint("lawful.jsonl line ", i+1)
		var r record
		if err := json.Unmarshal(split[i], &r); err != nil {
			return found, wrong(place, "%v", err)
		}
		last := log.last(p.Stream)
		var tree peaks
		push := func(level int, hash tlog.Hash) error { tree.push(level, hash); return nil }
		err := pushNodes(cover(0, p.Seq), p.Left, push)
		tree.push(0, tlog.RecordHash(leafOf(split[i], r)))
		if err == nil {
			err = pushNodes(cover(p.Seq+1, last.size), p.Right, push)
		}
		if err != nil || p.Seq >= last.size || tree.root() != last.root || r.Stream != p.Stream || r.Seq != p.Seq {
			return found, wrong(place, "not what was signed there: %v", err)
		}
		switch {
		case r.Kind == "retention.applied" && r.Detail.Table == "events":
			found.before = max(found.before, min(r.Detail.Before, r.At))
		case r.Kind == "retention.applied":
		case r.Kind == "subject.erased":
			for _, event := range r.Detail.Events {
				found.erased[event] = true
			}
		default:
			return found, wrong(place, "it says nothing of what has left")
		}
	}
	return found, nil
}

// lacking counts the leaves without a record that neither expired nor were erased.
func (l lawful) lacking(wanted map[identity][]byte, records []record) int {
	there := map[identity]bool{}
	for _, r := range records {
		there[identity{r.Stream, r.Seq}] = true
	}
	missing := 0
	for id, leaf := range wanted {
		name := strings.Join([]string{id.stream, fmt.Sprint(id.seq)}, "/")
		if !there[id] && !l.erased[name] && leafTime(leaf) >= l.before {
			missing++
		}
	}
	return missing
}
