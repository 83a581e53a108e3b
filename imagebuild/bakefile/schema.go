package bakefile

import "strings"

// Schema is a JSON Schema (draft 2020-12, https://json-schema.org/draft/2020-12) of bake files, ready to be marshalled.
// It is made from the parser's own table and takes the same files but for what a schema cannot say: that the names of
// disks differ, how many there may be, and what Parse says of YAML itself. The help of a key is that of its flag.
func Schema(help func(flag string) string) map[string]any {
	defs := map[string]any{}
	for i := range settings {
		k := &settings[i]
		defs[k.name] = schemaOf(k, help)
	}
	top := object(topKeys, help)
	top["required"] = []string{version.name, kindOf.name}
	disk := object(diskKeys, help)
	disk["required"] = disks.need
	for i := range settings {
		ref := map[string]any{"$ref": "#/$defs/" + settings[i].name}
		top["properties"].(map[string]any)[settings[i].name] = ref
		disk["properties"].(map[string]any)[settings[i].name] = ref
	}
	disk["description"] = "a disk: what it says replaces the single values of the top, and is added to the lists of the top"
	top["properties"].(map[string]any)[disks.name] = map[string]any{"type": "array", "minItems": 1, "maxItems": maxDisks, "items": disk, "description": disks.help}
	top["properties"].(map[string]any)[version.name] = map[string]any{"const": Version, "description": version.help}
	top["properties"].(map[string]any)[kindOf.name] = map[string]any{"const": Kind, "description": kindOf.help}
	top["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	top["title"] = "nodebake bake file"
	top["$defs"] = defs
	return top
}

// object is the schema of a mapping of keys.
func object(keys []key, help func(string) string) map[string]any {
	properties := map[string]any{}
	needs := map[string]any{}
	for i := range keys {
		k := &keys[i]
		properties[k.name] = schemaOf(k, help)
		if k.with != nil {
			needs[k.name] = k.with
		}
	}
	s := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if len(needs) > 0 {
		s["dependentRequired"] = needs
	}
	return s
}

// schemaOf is the schema of a key's value.
func schemaOf(k *key, help func(string) string) map[string]any {
	s := map[string]any{}
	single := s // what one value is
	switch k.kind {
	case group:
		s = object(k.keys, help)
	case items:
		one := object(k.keys, help)
		one["required"] = k.need
		s["type"], s["items"] = "array", one
	case texts:
		single = map[string]any{"type": "string"}
		s["type"], s["items"] = "array", single
	case names:
		s["type"], s["additionalProperties"], s["propertyNames"] = "object", map[string]any{"type": "string"}, map[string]any{"pattern": k.form.String()}
	case amount:
		s["type"] = []string{"string", "integer"}
	case number:
		s["type"] = "integer"
		if k.most > 0 {
			s["minimum"], s["maximum"] = 0, k.most
		}
	case boolean:
		s["type"] = "boolean"
	default:
		s["type"] = "string"
		if k.form != nil {
			s["pattern"] = k.form.String()
		}
	}
	if k.dashless {
		single["not"] = map[string]any{"const": "-"}
	}
	if d := k.help; d != "" {
		s["description"] = d
	} else if k.flag != "" && help != nil {
		d, _ = Translate(help(k.flag), nil)
		s["description"] = strings.TrimSuffix(d, "; may be given more than once")
	}
	return s
}
