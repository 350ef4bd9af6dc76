package main

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

type manifest struct {
	Format, Deployment string
	From, To           uint64
	Files              map[string]string
}

type population struct {
	Stream           string
	Size, First, End uint64
	Left, Right      []string
}

type subject struct {
	System, ID, Direction string
	Categories            []string
}

type record struct {
	At, Seq     uint64
	Code, Flags uint16
	Kind        string
	Stream      string
	Call        string
	Who         struct {
		User    struct{ Subject string }
		Agent   struct{ ID string }
		Purpose string
	}
	What    struct{ Server, Tool, Resource, Prompt, Method string }
	Outcome struct{ Status string }
	Data    struct {
		Labels   []string
		Subjects []subject
	}
}

type identity struct {
	stream string
	seq    uint64
}

func unzip(path string) (map[string][]byte, error) {
	archive, err := zip.OpenReader(path)
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	found := map[string][]byte{}
	for _, f := range archive.File {
		r, err := f.Open()
		if err != nil {
			return nil, wrong(f.Name, "%v", err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return nil, wrong(f.Name, "%v", err)
		}
		if _, twice := found[f.Name]; twice {
			return nil, wrong(f.Name, "it stands twice")
		}
		found[f.Name] = data
	}
	return found, nil
}

func checkPackage(path, root string) (bool, error) {
	all, err := unzip(path)
	if err != nil {
		return false, err
	}
	read := func(name string) ([]byte, error) {
		if data, there := all[name]; there {
			return data, nil
		}
		return nil, errors.New("the file is missing")
	}
	var m manifest
	if err := json.Unmarshal(all["manifest.json"], &m); err != nil || m.Format != "custody-evidence-1" {
		return false, wrong("manifest.json", "it cannot be read: %v", err)
	}
	if err := sums(all, m); err != nil {
		return false, err
	}
	if root == "" {
		root = string(all["keyring/root"])
	}
	entries, err := splitEntries("log/entries", all["log/entries"])
	if err != nil {
		return false, err
	}
	log, err := readLog(all["log/checkpoint"], entries, root, read)
	if err != nil {
		return false, err
	}
	if log.ring.deployment != m.Deployment {
		return false, wrong("manifest.json", "another deployment")
	}
	flagged, through, err := populations(log, m, read)
	if err != nil {
		return false, err
	}
	records, err := openRecords(all["records.jsonl"], flagged)
	if err != nil {
		return false, err
	}
	if string(all["report.csv"]) != report(records) {
		return false, wrong("report.csv", "it does not follow from the records")
	}
	known := 0
	for name := range all {
		if strings.HasPrefix(name, "population/") {
			known++
		}
	}
	if known != 2*len(log.streams) {
		return false, wrong("population", "%d files for %d streams", known, len(log.streams))
	}
	fmt.Printf("%d streams, %d of %d records, log of %d entries\n",
		len(log.streams), len(records), len(flagged), log.size)
	return len(records) == len(flagged) && through >= m.To, nil
}

func sums(all map[string][]byte, m manifest) error {
	for name, data := range all {
		sum := sha256.Sum256(data)
		if name != "manifest.json" && m.Files[name] != hex.EncodeToString(sum[:]) {
			return wrong(name, "not the file that the manifest names")
		}
	}
	if len(m.Files) != len(all)-1 {
		return wrong("manifest.json", "files are missing")
	}
	return nil
}

// populations verifies the leaves of every stream; the flagged ones of the period, and up to where
// the streams reach.
func populations(log deploymentLog, m manifest, read files) (map[identity][]byte, uint64, error) {
	flagged := map[identity][]byte{}
	newest := map[string]string{}
	ends := map[string]uint64{} // of streams whose last leaf is shown
	for stream := range log.streams {
		writer, _, _ := strings.Cut(stream, "/")
		newest[writer] = max(newest[writer], stream)
		leaves, p, err := proven(log, stream, read)
		if err != nil {
			return nil, 0, err
		}
		place := "population/" + stream
		before := uint64(0)
		for i, leaf := range leaves {
			at := binary.BigEndian.Uint64(leaf[32:])
			if at < before {
				return nil, 0, wrong(place, "time goes backwards")
			}
			before = at
			if at >= m.From && at < m.To && binary.BigEndian.Uint16(leaf[42:])&1 != 0 {
				flagged[identity{stream, p.First + uint64(i)}] = leaf
			}
		}
		if p.First > 0 && (len(leaves) == 0 || binary.BigEndian.Uint64(leaves[0][32:]) >= m.From) {
			return nil, 0, wrong(place, "no neighbour before the period")
		}
		if p.End < p.Size && before < m.To {
			return nil, 0, wrong(place, "no neighbour after the period")
		}
		if n := len(leaves); n > 0 && p.End == p.Size {
			ends[stream] = before
		}
	}
	through := ^uint64(0)
	for _, k := range log.ring.writers {
		if k.until != 0 || !k.active {
			continue
		}
		if newest[k.name] == "" {
			through = min(through, k.from)
		} else if end, shown := ends[newest[k.name]]; shown {
			through = min(through, end)
		}
	}
	return flagged, through, nil
}

// proven reads a stream's leaves and compares their root with its last checkpoint.
func proven(log deploymentLog, stream string, read files) ([][]byte, population, error) {
	var p population
	place := "population/" + stream
	text, err := read(place + ".json")
	if err != nil {
		return nil, p, wrong(place, "%v", err)
	}
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, p, wrong(place, "%v", err)
	}
	data, err := read(place + ".leaves")
	if err != nil || len(data)%44 != 0 {
		return nil, p, wrong(place, "leaves: %v", err)
	}
	var tree peaks
	side := func(levels []int, nodes []string) error {
		if len(levels) != len(nodes) {
			return wrong(place, "%d nodes, not %d", len(nodes), len(levels))
		}
		for i, level := range levels {
			hash, err := hex.DecodeString(nodes[i])
			if err != nil || len(hash) != 32 {
				return wrong(place, "a hash cannot be read")
			}
			tree.push(level, tlog.Hash(hash))
		}
		return nil
	}
	if p.First > p.End || p.End > p.Size || uint64(len(data)/44) != p.End-p.First {
		return nil, p, wrong(place, "its numbers do not fit")
	}
	if err := side(cover(0, p.First), p.Left); err != nil {
		return nil, p, err
	}
	var leaves [][]byte
	for i := 0; i < len(data); i += 44 {
		leaves = append(leaves, data[i:i+44])
		tree.push(0, tlog.RecordHash(data[i:i+44]))
	}
	if err := side(cover(p.End, p.Size), p.Right); err != nil {
		return nil, p, err
	}
	last := log.last(stream)
	if p.Stream != stream || p.Size != last.size || tree.root() != last.root {
		return nil, p, wrong(place, "not the leaves of the stream's last checkpoint")
	}
	return leaves, p, nil
}

// openRecords compares each record with its leaf.
func openRecords(data []byte, flagged map[identity][]byte) ([]record, error) {
	var found []record
	seen := map[identity]bool{}
	for i, line := range bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n")) {
		if len(data) == 0 {
			break
		}
		place := fmt.Sprint("records.jsonl line ", i+1)
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, wrong(place, "%v", err)
		}
		sum := sha256.Sum256(line)
		leaf := sum[:]
		leaf = binary.BigEndian.AppendUint64(leaf, r.At)
		leaf = binary.BigEndian.AppendUint16(leaf, r.Code)
		leaf = binary.BigEndian.AppendUint16(leaf, r.Flags)
		id := identity{r.Stream, r.Seq}
		if !bytes.Equal(leaf, flagged[id]) {
			return nil, wrong(place, "%s %d is not what was signed", r.Stream, r.Seq)
		}
		if seen[id] {
			return nil, wrong(place, "it stands twice")
		}
		seen[id] = true
		found = append(found, r)
	}
	ordered := sort.SliceIsSorted(found, func(i, j int) bool {
		a, b := found[i], found[j]
		return a.Stream < b.Stream || a.Stream == b.Stream && a.Seq < b.Seq
	})
	if !ordered {
		return nil, wrong("records.jsonl", "its order is wrong")
	}
	return found, nil
}

// report is report.csv as it follows from the records.
func report(records []record) string {
	var text strings.Builder
	text.WriteString("time,user,agent,purpose,server,tool,patient_system,patient_id,direction,categories,status,call,stream,seq\n")
	ended := map[string]bool{}
	for _, r := range records {
		ended[r.Call] = ended[r.Call] || r.Kind == "call.ended"
	}
	for _, r := range records {
		counts := r.Kind == "call.ended" || r.Kind == "subjects.listed" ||
			r.Kind == "call.requested" && !(r.Call != "" && ended[r.Call])
		if !counts {
			continue
		}
		subjects := r.Data.Subjects
		if len(subjects) == 0 && r.Kind != "subjects.listed" {
			for _, label := range r.Data.Labels {
				if label == "phi" {
					subjects = []subject{{}}
				}
			}
		}
		tool := r.What.Method
		for _, name := range []string{r.What.Prompt, r.What.Resource, r.What.Tool} {
			if name != "" {
				tool = name
			}
		}
		for _, s := range subjects {
			fields := []string{
				time.UnixMicro(int64(r.At)).UTC().Format("2006-01-02T15:04:05.000000Z"),
				r.Who.User.Subject, r.Who.Agent.ID, r.Who.Purpose, r.What.Server, tool,
				s.System, s.ID, s.Direction, strings.Join(s.Categories, " "), r.Outcome.Status,
				r.Call, r.Stream, fmt.Sprint(r.Seq),
			}
			for i, f := range fields {
				if strings.ContainsAny(f, ",\"\n\r") {
					fields[i] = `"` + strings.ReplaceAll(f, `"`, `""`) + `"`
				}
			}
			text.WriteString(strings.Join(fields, ",") + "\n")
		}
	}
	return text.String()
}
