package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"
)

// checkSeal verifies a lake's folder seal: the log, every stream's leaf data at every logged size.
func checkSeal(folder, root string, p *policy) (bool, error) {
	read := func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(folder, name)) }
	if root == "" {
		text, err := read("root")
		if err != nil {
			return false, err
		}
		root = string(text)
	}
	head, err := read("log/checkpoint")
	if err != nil {
		return false, err
	}
	said, err := parseCheckpoint(string(head))
	if err != nil {
		return false, wrong("log/checkpoint", "%v", err)
	}
	entries, err := readTree(read, "log", said.size)
	if err != nil {
		return false, err
	}
	log, err := readLog(head, entries, root, read)
	if err != nil {
		return false, err
	}
	if err := checkWitnessed(log, entries, p, read); err != nil {
		return false, err
	}
	leaves := 0
	for stream, sizes := range log.streams {
		place := "streams/" + stream
		data, err := readTree(read, place, log.last(stream).size)
		if err != nil {
			return false, err
		}
		var tree peaks
		for i, leaf := range data {
			if len(leaf) != 44 {
				return false, wrong(place, "leaf %d has not 44 bytes", i)
			}
			tree.push(0, tlog.RecordHash(leaf))
			c, logged := sizes[tree.at]
			if logged && c.root != tree.root() {
				return false, wrong(place, "another root at size %d", tree.at)
			}
			if logged && c.until != 0 && binary.BigEndian.Uint64(leaf[32:]) >= c.until {
				return false, wrong(place, "the key had been closed at size %d", tree.at)
			}
		}
		leaves += len(data)
	}
	fmt.Printf("log of %d entries, %d streams, %d leaves\n", log.size, len(log.streams), leaves)
	return true, nil
}

func tilePath(index uint64, width int) string {
	text := fmt.Sprintf("%03d", index%1000)
	for index /= 1000; index > 0; index /= 1000 {
		text = fmt.Sprintf("x%03d/%s", index%1000, text)
	}
	if width < 256 {
		text += fmt.Sprintf(".p/%d", width)
	}
	return text
}

// readTree reads all entries of a tree and compares its tiles with them.
func readTree(read files, folder string, size uint64) ([][]byte, error) {
	var all [][]byte
	for first := uint64(0); first < size; first += 256 {
		width := int(min(size-first, 256))
		name := folder + "/tile/entries/" + tilePath(first/256, width)
		data, err := read(name)
		if err != nil {
			return nil, wrong(name, "%v", err)
		}
		found, err := splitEntries(name, data)
		if err != nil {
			return nil, err
		}
		if len(found) != width {
			return nil, wrong(name, "%d entries", len(found))
		}
		all = append(all, found...)
	}
	level := make([]tlog.Hash, len(all))
	for i, e := range all {
		level[i] = tlog.RecordHash(e)
	}
	for l := 0; len(level) > 0; l++ {
		var above []tlog.Hash
		for first := 0; first < len(level); first += 256 {
			nodes := level[first:min(first+256, len(level))]
			name := fmt.Sprintf("%s/tile/%d/%s", folder, l, tilePath(uint64(first/256), len(nodes)))
			data, err := read(name)
			if err != nil {
				return nil, wrong(name, "%v", err)
			}
			var expected []byte
			var p peaks
			for _, n := range nodes {
				expected = append(expected, n[:]...)
				p.push(0, n)
			}
			if !bytes.Equal(data, expected) {
				return nil, wrong(name, "its hashes do not follow from the entries")
			}
			if len(nodes) == 256 {
				above = append(above, p.root())
			}
		}
		level = above
	}
	return all, nil
}
