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
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

type manifest struct {
	Format, Deployment string
	From, To           uint64
	Population         string
	Challenge          *struct {
		Seed  string
		Count int
	}
	Files map[string]string
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
	Detail struct {
		Table  string
		Before uint64
		Events []string
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

func checkPackage(path, root string, p *policy) (bool, error) {
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
	if err := checkWitnessed(log, entries, p, read); err != nil {
		return false, err
	}
	if log.ring.deployment != m.Deployment {
		return false, wrong("manifest.json", "another deployment")
	}
	shown, err := populations(log, m, read)
	if err != nil {
		return false, err
	}
	lawful, err := readLawful(log, all["lawful.json"], all["lawful.jsonl"])
	if err != nil {
		return false, err
	}
	records, err := openRecords("records.jsonl", all, shown.flagged)
	if err != nil {
		return false, err
	}
	if string(all["report.csv"]) != report(records) {
		return false, wrong("report.csv", "it does not follow from the records")
	}
	missing := 0
	if m.Population != "flags" {
		missing += lawful.lacking(shown.flagged, records)
	}
	known := 9 + len(log.rings) + 2*len(log.streams)
	known -= absent(all, "lawful.json") + absent(all, "lawful.jsonl")
	if m.Challenge != nil {
		known++
		drawn := draw(m.Challenge.Seed, m.Challenge.Count, shown.period)
		sample, err := openRecords("sample.jsonl", all, drawn)
		if err != nil {
			return false, err
		}
		missing += lawful.lacking(drawn, sample)
	}
	if known != len(all) {
		return false, wrong("manifest.json", "%d files, not %d", len(all), known)
	}
	fmt.Printf("%d streams, %d of %d records, %d missing, log of %d entries\n",
		len(log.streams), len(records), len(shown.flagged), missing, log.size)
	return missing == 0 && shown.through >= m.To, nil
}

func absent(all map[string][]byte, name string) int {
	if _, there := all[name]; there {
		return 0
	}
	return 1
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

// What the leaves show.
type shown struct {
	flagged map[identity][]byte // of the period
	period  map[identity][]byte // all of it
	through uint64              // up to where the streams reach
}

// populations verifies the leaves of every stream.
func populations(log deploymentLog, m manifest, read files) (shown, error) {
	s := shown{map[identity][]byte{}, map[identity][]byte{}, ^uint64(0)}
	newest := map[string]string{}
	ends := map[string]uint64{} // of streams whose last leaf is shown
	for stream := range log.streams {
		writer, _, _ := strings.Cut(stream, "/")
		newest[writer] = max(newest[writer], stream)
		leaves, p, err := proven(log, stream, m, read)
		if err != nil {
			return s, err
		}
		place := "population/" + stream
		before := uint64(0)
		for i, leaf := range leaves {
			at := leafTime(leaf)
			if at < before {
				return s, wrong(place, "time goes backwards")
			}
			before = at
			id := identity{stream, p.First + uint64(i)}
			if at >= m.From && at < m.To {
				s.period[id] = leaf
				if binary.BigEndian.Uint16(leaf[42:])&1 != 0 {
					s.flagged[id] = leaf
				}
			}
			c, logged := log.streams[stream][id.seq+1]
			if logged && c.until != 0 && at >= c.until {
				return s, wrong(place, "the key had been closed at size %d", id.seq+1)
			}
		}
		if p.First > 0 && (len(leaves) == 0 || leafTime(leaves[0]) >= m.From) {
			return s, wrong(place, "no neighbour before the period")
		}
		if p.End < p.Size && before < m.To {
			return s, wrong(place, "no neighbour after the period")
		}
		if n := len(leaves); n > 0 && p.End == p.Size {
			ends[stream] = before
		}
	}
	for _, k := range log.ring.writers {
		if k.until != 0 || !k.active {
			continue
		}
		if newest[k.name] == "" {
			s.through = min(s.through, k.from)
		} else if end, shown := ends[newest[k.name]]; shown {
			s.through = min(s.through, end)
		}
	}
	return s, nil
}

func leafTime(leaf []byte) uint64 { return binary.BigEndian.Uint64(leaf[32:]) }

// proven reads a stream's leaves and compares their root with its checkpoints: with all of them
// where a leaf lies in the period.
func proven(log deploymentLog, stream string, m manifest, read files) ([][]byte, population, error) {
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
	if p.First > p.End || p.End > p.Size || uint64(len(data)/44) != p.End-p.First {
		return nil, p, wrong(place, "its numbers do not fit")
	}
	var leaves [][]byte
	within := false
	for i := 0; i < len(data); i += 44 {
		leaf := data[i : i+44]
		leaves = append(leaves, leaf)
		within = within || leafTime(leaf) >= m.From && leafTime(leaf) < m.To
	}
	last := log.last(stream)
	if p.Stream != stream || p.Size != last.size {
		return nil, p, wrong(place, "not the leaves of the stream's last checkpoint")
	}
	var cuts []uint64
	if within {
		for size := range log.streams[stream] {
			cuts = append(cuts, size)
		}
		slices.Sort(cuts)
	}
	tree := peaks{}
	push := func(level int, hash tlog.Hash) error {
		tree.push(level, hash)
		c, logged := log.streams[stream][tree.at]
		if logged && (within || tree.at == p.Size) && c.root != tree.root() {
			return wrong(place, "not the leaves of the checkpoint at size %d", tree.at)
		}
		return nil
	}
	if err := pushNodes(coverCut(0, p.First, cuts), p.Left, push); err != nil {
		return nil, p, wrong(place, "left: %v", err)
	}
	for _, leaf := range leaves {
		if err := push(0, tlog.RecordHash(leaf)); err != nil {
			return nil, p, err
		}
	}
	if err := pushNodes(coverCut(p.End, p.Size, cuts), p.Right, push); err != nil {
		return nil, p, wrong(place, "right: %v", err)
	}
	return leaves, p, nil
}

func pushNodes(levels []int, nodes []string, push func(int, tlog.Hash) error) error {
	if len(levels) != len(nodes) {
		return fmt.Errorf("%d nodes, not %d", len(nodes), len(levels))
	}
	for i, level := range levels {
		hash, err := hex.DecodeString(nodes[i])
		if err != nil || len(hash) != 32 {
			return errors.New("a hash cannot be read")
		}
		if err := push(level, tlog.Hash(hash)); err != nil {
			return err
		}
	}
	return nil
}

// leafOf is the leaf data of a record.
func leafOf(line []byte, r record) []byte {
	sum := sha256.Sum256(line)
	leaf := binary.BigEndian.AppendUint64(sum[:], r.At)
	leaf = binary.BigEndian.AppendUint16(leaf, r.Code)
	return binary.BigEndian.AppendUint16(leaf, r.Flags)
}

// openRecords compares each record of a file with its leaf.
func openRecords(name string, all map[string][]byte, wanted map[identity][]byte) ([]record, error) {
	data, there := all[name]
	if !there {
		return nil, wrong(name, "the file is missing")
	}
	if n := len(data); n > 0 && data[n-1] != '\n' {
		return nil, wrong(name, "a line does not end")
	}
	var found []record
	seen := map[identity]bool{}
	for i, line := range bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n")) {
		if len(data) == 0 {
			break
		}
		place := fmt.Sprint(name, " line ", i+1)
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, wrong(place, "%v", err)
		}
		id := identity{r.Stream, r.Seq}
		if !bytes.Equal(leafOf(line, r), wanted[id]) {
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
		return nil, wrong(name, "its order is wrong")
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
