package config_test

import (
	"testing"

	"github.com/heddle-net/heddle/internal/config"
)

func TestParseNamesFieldValueAndWhatItWants(t *testing.T) {
	for text, want := range map[string]string{
		"nod: n1":                             "heddle.yaml: unknown field nod \"n1\": want one of ",
		"store: {endpoint: x}":                `heddle.yaml: unknown field store.endpoint "x": want one of type, endpoints, prefix, ca, cert, key`,
		"store: x":                            `heddle.yaml: store "x": want fields with their values, such as node: n1`,
		"store: {endpoints: x}":               `heddle.yaml: store.endpoints "x": want a list, such as ["https://192.168.0.4:2379"]`,
		"leaseTTL: 90":                        "heddle.yaml: leaseTTL 90: want a duration with its unit, such as 90s or 24h",
		"leaseTTL: soon":                      `heddle.yaml: leaseTTL "soon": want a duration with its unit, such as 90s or 24h`,
		"masquerade: 7":                       "heddle.yaml: masquerade 7: want true or false",
		"node: [a]":                           `heddle.yaml: node ["a"]: want a text`,
		"address: 10.0.0.1":                   `heddle.yaml: address "10.0.0.1": want a list of IP addresses, such as [192.168.0.4]`,
		"address: [10.0.0]":                   `heddle.yaml: address ["10.0.0"]: want a list of IP addresses, such as [192.168.0.4]`,
		"- a":                                 `heddle.yaml: content ["a"]: want fields with their values, such as node: n1`,
		"node: a\nnode: b":                    `heddle.yaml: line 2: key "node" already set in map`,
		"node: \"a":                           "heddle.yaml: found unexpected end of stream",
		"publicAddress: [1]\nattachment: [x]": `heddle.yaml: attachment ["x"]: want a text`, // by name, the first
	} {
		_, err := config.Parse([]byte(text))
		if err == nil || len(err.Error()) < len(want) || err.Error()[:len(want)] != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}
