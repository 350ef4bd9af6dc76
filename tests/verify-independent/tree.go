package main

import (
	"crypto/sha256"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Perfect subtrees from left to right; equal neighbours join where they are one subtree.
type peaks struct {
	nodes []peak
	at    uint64
}

type peak struct {
	level int
	start uint64
	hash  tlog.Hash
}

func (p *peaks) push(level int, hash tlog.Hash) {
	n := peak{level, p.at, hash}
	p.at += 1 << level
	for len(p.nodes) > 0 {
		left := p.nodes[len(p.nodes)-1]
		if left.level != n.level || left.start%(1<<(n.level+1)) != 0 {
			break
		}
		p.nodes = p.nodes[:len(p.nodes)-1]
		n = peak{n.level + 1, left.start, tlog.NodeHash(left.hash, n.hash)}
	}
	p.nodes = append(p.nodes, n)
}

func (p *peaks) root() tlog.Hash {
	if len(p.nodes) == 0 {
		return tlog.Hash(sha256.Sum256(nil))
	}
	root := p.nodes[len(p.nodes)-1].hash
	for i := len(p.nodes) - 2; i >= 0; i-- {
		root = tlog.NodeHash(p.nodes[i].hash, root)
	}
	return root
}

// cover says the levels of the subtrees that cover [from, to), from the left.
func cover(from, to uint64) []int {
	var levels []int
	for at := from; at < to; {
		level := bits.Len64(to-at) - 1
		if at != 0 && bits.TrailingZeros64(at) < level {
			level = bits.TrailingZeros64(at)
		}
		levels = append(levels, level)
		at += 1 << level
	}
	return levels
}

// coverCut does the same where no subtree reaches across a cut.
func coverCut(from, to uint64, cuts []uint64) []int {
	var levels []int
	for _, cut := range cuts {
		if from < cut && cut < to {
			levels = append(levels, cover(from, cut)...)
			from = cut
		}
	}
	return append(levels, cover(from, to)...)
}
